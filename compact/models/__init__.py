"""Models that ship with the package, one folder each in the Hugging Face layout."""
