"""Codec: prompts to token ids, token ids to text or pictures. Imports no torch.

A codec is plain data. A checkpoint and an exported `.onnx` carry its JSON and the name of its entry
point in the group `gptkit.codecs`, so sampling never opens the training data.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from gptkit.errors import PromptError

__all__ = ["Codec", "PromptError"]


class Codec(BaseModel, ABC):
    """How one data set's prompts and samples look; every field must be JSON-able."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suffix: ClassVar[str]
    """File name ending of what `decode` returns, e.g. ".txt" or ".png"."""

    @abstractmethod
    def encode(self, prompt: str) -> list[int]:
        """Token ids that start a sample.

        Args:
            prompt: what the user asks to continue; "" asks for a sample from nothing.

        Returns:
            At least one token id.

        Raises:
            PromptError: the prompt has parts that the model never saw.
        """

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> bytes:
        """The file contents that `tokens` stand for, in the format that `suffix` names."""

    def sheet(self, samples: Sequence[Sequence[int]]) -> bytes:
        """Several samples in one file of the same format; text is separated by a ruled line."""
        return b"\n----------\n".join(self.decode(sample) for sample in samples)
