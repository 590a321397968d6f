"""gptkit: train, sample and ship small and medium GPTs from one recipe file."""

__version__ = "0.2.0"
