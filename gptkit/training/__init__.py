"""Training: step, evaluation, optimizer, device, processes."""
