"""Samples being drawn: what was asked for, what they start with, a token at a time. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass

from gptkit.codec import Codec
from gptkit.errors import PromptError

DEFAULT_TEXT_TOKENS = 500
"""What is drawn of a sample that could go on for ever, if nobody says how much."""


@dataclass(frozen=True)
class SampleRequest:
    """Which samples somebody wants.

    Args:
        prompt: what to continue; with "" and no label, samples start in all the ways there are.
        tokens: how many to draw; None draws the rest of a picture, or `TEXT_TOKENS` of text.
        samples: rows that are drawn together.
        keep: how much of the prompt to keep, from its beginning.
        label: the class to draw from.
    """

    prompt: str = ""
    tokens: int | None = None
    samples: int = 1
    keep: float = 1.0
    label: str | None = None

    def starts(self, codec: Codec) -> list[list[int]]:
        """Token ids that each of the samples starts with, all of one length.

        Raises:
            PromptError: the codec cannot read the prompt.
        """
        if self.prompt or self.label is not None or self.keep != 1:
            return [codec.start(self.prompt, keep=self.keep, label=self.label)] * self.samples
        return [codec.starts[i % len(codec.starts)] for i in range(self.samples)]

    def count(self, start: list[int], length: int | None) -> int:
        """How many tokens to draw after a start, where a whole sample may have a length.

        Raises:
            PromptError: nothing is left to draw.
        """
        if length is None:
            return self.tokens or DEFAULT_TEXT_TOKENS
        rest = length - len(start)
        if rest < 1:
            raise PromptError("the prompt is whole: nothing is left to draw", hint="--keep 0.5")
        return min(self.tokens or rest, rest)


@dataclass(frozen=True)
class Samples:
    """Samples being drawn: what they start with, and a token of every row at a time.

    Iterating `stream` draws; it can be done once.
    """

    prompt: str
    starts: list[list[int]]
    stream: Iterator[list[int]]

    def rows(self) -> list[list[int]]:
        """Draw to the end; the token ids of every sample, its start included."""
        drawn = zip(*self.stream, strict=True)
        return [[*start, *row] for start, row in zip(self.starts, drawn, strict=True)]

    def contents(self, codec: Codec) -> bytes:
        """Draw to the end; all samples in one file, in the codec's format."""
        return codec.sheet(self.rows(), prompt=self.prompt, kept=len(self.starts[0]))
