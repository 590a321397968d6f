"""Hostile inputs: generators of mutated files, run through the real command line."""
