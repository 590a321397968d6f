"""Analysis of trained models: classification and probes."""
