"""gptkit: train, sample and ship small and medium GPTs from one recipe file."""

from importlib import import_module
from typing import Any

__version__ = "0.6.0"

HOMES = {
    "train": "gptkit.run",
    "resume": "gptkit.run",
    "import_model": "gptkit.run",
    "trainer": "gptkit.run",
    "dataset": "gptkit.run",
    "Run": "gptkit.run",
    "load": "gptkit.loading",
    "Model": "gptkit.sampling.model",
    "Recipe": "gptkit.recipe.recipe",
    "GptkitError": "gptkit.errors",
    "UsageError": "gptkit.errors",
    "RecipeError": "gptkit.errors",
    "DivergedError": "gptkit.errors",
    "StoppedError": "gptkit.errors",
}
"""The public names and their modules, which are imported when a name is first used."""

__all__ = ["__version__", *HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the command line starts without torch."""
    if name not in HOMES:
        raise AttributeError(f"module 'gptkit' has no attribute '{name}'")
    found = globals()[name] = getattr(import_module(HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    """The public names, also those that are not imported yet."""
    return __all__
