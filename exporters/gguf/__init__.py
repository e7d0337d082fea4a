"""The format GGUF: its class, artifact, parity gate, sizes and memory."""
