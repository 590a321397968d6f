"""GGUF, the file format of llama.cpp, in and out."""
