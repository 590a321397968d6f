"""Exported models at work in onnxruntime. Imports no torch."""
