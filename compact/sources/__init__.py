"""Where a model comes from: a folder, the Hub, a GGUF file, a configuration."""
