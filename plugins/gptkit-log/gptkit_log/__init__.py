"""Progress on the terminal, metrics as JSON lines, and samples drawn during training."""

from gptkit_log.callback import Log

__all__ = ["Log"]
