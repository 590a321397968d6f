"""A GPT as ONNX graphs, written from its config."""
