"""Scripts that measure quality, formats, devices and scale. Run by hand; README.md lists them."""
