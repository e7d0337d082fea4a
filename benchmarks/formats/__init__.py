"""GGUF and ONNX files against references, and the types of each format."""
