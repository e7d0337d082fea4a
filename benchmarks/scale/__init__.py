"""Time and memory on large models."""
