"""Writes a checkpoint as GGUF: key-values, tokenizer and tensors."""
