"""ONNX: graphs written from a GPTConfig, proven equal to the model, and run without torch."""
