"""gptkit: train, sample and ship small and medium GPTs from one recipe file."""

from typing import Any

__all__ = ["__version__", "load"]

__version__ = "0.3.0"


def __getattr__(name: str) -> Any:
    """Import `load` when it is first used, so that the command line starts quickly."""
    if name != "load":
        raise AttributeError(f"module 'gptkit' has no attribute '{name}'")
    from gptkit.loading import load

    return load
