"""llama.cpp's programs for a device: sources, flags, compilation and folders."""
