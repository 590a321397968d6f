"""The GPT: blocks, cache, model."""
