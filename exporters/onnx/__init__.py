"""The format ONNX: its class, the model builder, engines and the parity gate."""
