"""What a trained model knows: classification and probes."""
