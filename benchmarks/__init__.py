"""What the README's figures come from, side by side with peers: `python -m benchmarks`."""
