"""Codec: prompts to token ids, token ids to text or images. Imports no torch.

A codec is plain data. A checkpoint and an exported `.onnx` carry its JSON and the name of its entry
point in the group `gptkit.codecs`, so sampling never opens the training data.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from gptkit.errors import PromptError

__all__ = ["Codec", "PromptError"]


class Codec(BaseModel, ABC):
    """Converts one data set's prompts and samples; every field must be JSON-able."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    suffix: ClassVar[str]
    """File name ending of what `decode` returns, e.g. ".txt" or ".png"."""

    temperature: ClassVar[float] = 0.8
    """The default sampling temperature."""

    @property
    def length(self) -> int | None:
        """Tokens of a whole sample with its start; None for text, which has no end."""
        return None

    @property
    def lossless(self) -> bool | None:
        """True if every token is one dimension of the data: bits per token are bits per dimension.

        False if the codec drops information, None if the data has no dimensions to count.
        """
        return None

    @abstractmethod
    def encode(self, prompt: str) -> list[int]:
        """Token ids that start a sample.

        Args:
            prompt: what to continue; "" for a sample without a prompt.

        Returns:
            At least one token id.

        Raises:
            PromptError: the prompt contains something that the model never saw.
        """

    @property
    def starts(self) -> list[list[int]]:
        """The starts of samples without a prompt: one per class, or a single one."""
        return [self.encode("")]

    def start(self, prompt: str, *, keep: float = 1.0, label: str | None = None) -> list[int]:
        """Token ids that start a sample, for the options of `gptkit sample`.

        Args:
            prompt: what to continue; "" for a sample without a prompt.
            keep: the fraction of the prompt to keep, from its beginning, 0 to 1.
            label: the class to draw from, if the model has classes.

        Raises:
            PromptError: the prompt, `keep` or `label` does not fit this model.
        """
        if label is not None:
            raise PromptError("this model knows no classes", hint="leave --class out")
        if not 0 <= keep <= 1:
            raise PromptError(f"keep should be between 0 and 1, got {keep}")
        tokens = self.encode(prompt)
        return tokens[: max(1, round(keep * len(tokens)))]

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> bytes:
        """The file contents that `tokens` stand for, in the format that `suffix` names."""

    def sheet(self, samples: Sequence[Sequence[int]], *, prompt: str = "", kept: int = 0) -> bytes:
        """Several samples in one file of the same format; a line of dashes separates texts.

        Args:
            samples: token ids of each sample, those of the prompt first.
            prompt: the prompt, for formats that show it, too.
            kept: how many tokens of every sample come from the prompt.
        """
        return b"\n----------\n".join(self.decode(sample) for sample in samples)

    def legend(self) -> dict[str, Any] | None:
        """What the token ids stand for, as JSON, for programs that do not have this codec.

        Text: `{"text": [...]}`, a string per id. Images: `{"width": W, "height": H, "colors":
        [[r, g, b], ...]}`, a colour per id, or `"channels": 3` if red, green and blue are
        separate tokens with ids 0 to 255; `"classes": [...]` names the starts if there are
        several. None if neither fits.
        """
        return None

    def preview(self, contents: bytes, *, width: int) -> str | None:
        """The result of `decode` or `sheet` as text for a terminal of `width` columns.

        None if it cannot be shown.
        """
        return None
