"""Requests for samples, and samples while they are drawn. Imports no torch."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from gptkit.codec import Codec, ImageCodec, TextCodec
from gptkit.errors import PromptError
from gptkit.sampling.generate import Decoder, generate
from gptkit.sampling.rule import SamplingOptions

DEFAULT_TEXT_TOKENS = 500
"""Default number of tokens for text."""
RULE = "\n----------\n"
"""What is between texts in one file."""


@dataclass(frozen=True)
class SampleRequest:
    """Which samples to draw.

    Args:
        prompt: what to continue; with "" and no label, samples take the model's starts in turn.
        tokens: how many to draw; None draws the rest of an image, or `DEFAULT_TEXT_TOKENS` of text.
        samples: how many samples to draw, as one batch.
        keep: the fraction of the prompt to keep, from its beginning, 0 to 1.
        label: the class to draw from.
    """

    prompt: str = ""
    tokens: int | None = None
    samples: int = 1
    keep: float = 1.0
    label: str | None = None

    @property
    def needs_codec(self) -> bool:
        """Whether the codec must encode a prompt or a label; otherwise the starts are enough."""
        return bool(self.prompt) or self.label is not None or self.keep != 1

    def starts(self, codec: Codec) -> list[list[int]]:
        """The first token ids of each sample, all of the same length.

        Raises:
            PromptError: the codec cannot read the prompt.
        """
        if self.needs_codec:
            return [codec.start(self.prompt, keep=self.keep, label=self.label)] * self.samples
        return self.in_turn(codec.starts)

    def in_turn(self, starts: Sequence[list[int]]) -> list[list[int]]:
        """A start for each sample: the given ones, in turn."""
        return [starts[i % len(starts)] for i in range(self.samples)]

    def count(self, start: list[int], length: int | None) -> int:
        """How many tokens to draw.

        Args:
            start: the tokens that a sample starts with.
            length: tokens of a whole sample; None for text, which has no end.

        Raises:
            PromptError: the prompt already fills the sample.
        """
        if length is None:
            return self.tokens or DEFAULT_TEXT_TOKENS
        rest = length - len(start)
        if rest < 1:
            raise PromptError("the prompt already fills the sample", hint="--keep 0.5")
        return min(self.tokens or rest, rest)


@dataclass(frozen=True)
class Samples:
    """Samples while they are drawn: their starts, then one token of every row at a time.

    Iterating `stream` draws the tokens; it can be done once.
    """

    prompt: str
    starts: list[list[int]]
    stream: Iterator[list[int]]

    def token_ids(self) -> list[list[int]]:
        """Draw all tokens; return the token ids of every sample with its start."""
        drawn = zip(*self.stream, strict=True)
        return [[*start, *row] for start, row in zip(self.starts, drawn, strict=True)]

    def id_lines(self) -> bytes:
        """Draw to the end; the token ids as text, a line for every sample."""
        return "".join(" ".join(map(str, row)) + "\n" for row in self.token_ids()).encode()

    def contents(self, codec: Codec) -> list[bytes]:
        """Draw all tokens; return the contents of files in the codec's format.

        Texts share one file, with a line of dashes between them, and so do images, on a sheet. In
        any other format every sample is a file of its own.
        """
        rows = self.token_ids()
        match codec:
            case TextCodec():
                return [RULE.join(text_of(codec, row) for row in rows).encode()]
            case ImageCodec():
                return [codec.sheet(rows, prompt=self.prompt, kept=len(self.starts[0]))]
            case _:
                return [codec.decode(row) for row in rows]

    def pieces(self, codec: TextCodec) -> Iterator[str]:
        """Draw the first sample's text piece by piece: its start, then what each token adds.

        A character appears when its last token is drawn. Joined, the pieces are the whole text.
        """
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        for tokens in chain(self.starts[:1], (row[:1] for row in self.stream)):
            if piece := utf8.decode(codec.decode(tokens)):
                yield piece
        if rest := utf8.decode(b"", final=True):
            yield rest


def text_of(codec: TextCodec, tokens: Sequence[int]) -> str:
    """The text of a sample; bytes that are not UTF-8 become U+FFFD."""
    return codec.decode(tokens).decode(errors="replace")


def sample(
    decoder: Decoder, codec: Codec, request: SampleRequest, sampling: SamplingOptions
) -> Samples:
    """Start to draw samples from a decoder.

    Args:
        decoder: of a model in evaluation mode, made for as many rows as there are samples.
        codec: reads the prompt.
        request: which samples.
        sampling: options of the rule.

    Raises:
        PromptError: the codec cannot read the prompt, or the prompt already fills the sample.
    """
    starts = request.starts(codec)
    drawn = generate(
        decoder,
        starts,
        tokens=request.count(starts[0], codec.length),
        sampling=sampling,
        samples=request.samples,
    )
    return Samples(request.prompt, starts, (chosen.tolist() for chosen in drawn))
