"""Checkpoint files: the names in a folder, safetensors and GGUF, read and written in pieces."""
