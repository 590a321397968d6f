"""Run folders: train, resume, checkpoints."""
