"""Requests for samples, and samples while they are drawn. Imports no torch."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gptkit.codec import Codec, ImageCodec, TextCodec
from gptkit.errors import PromptError, UsageError
from gptkit.sampling.generate import Decoder, generate
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.stops import Sample, Stops

DEFAULT_TEXT_TOKENS = 500
"""Default number of tokens for text."""
MOST = {"tokens": 2**31 - 1, "samples": 1_000_000}
"""Most of each in a request; far fewer take hours."""
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
        stop: texts that end a sample, each before itself.
        ignore_stop: do not end at the codec's stop tokens.
        place: where the prompt comes from, for errors, e.g. "prompts.txt:3".
        ids: token ids to continue, in place of what the codec makes of a prompt.
        stop_tokens: ids that end a sample; None: the codec's.

    Raises:
        UsageError: the prompt is no text, a number is out of range, or a stop text is empty or no
            UTF-8.
    """

    prompt: str = ""
    tokens: int | None = None
    samples: int = 1
    keep: float = 1.0
    label: str | None = None
    stop: tuple[str, ...] = ()
    ignore_stop: bool = False
    place: str = ""
    ids: tuple[int, ...] = ()
    stop_tokens: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise UsageError(f"prompt should be a text, got {self.prompt!r}")
        for name in ("tokens", "samples"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UsageError(f"{name} should be 1 or more, got {number}")
            if number is not None and number > MOST[name]:
                raise UsageError(f"{name} should be at most {MOST[name]:,}, got {number:,}")
        if "" in self.stop:
            raise UsageError("a stop text should not be empty", hint=r"--stop $'\n' is a newline")
        for text in self.stop:
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise UsageError(f"a stop text should be UTF-8, got {text!r}")

    @property
    def needs_codec(self) -> bool:
        """Whether the codec must encode a prompt or a label; otherwise the starts are enough."""
        if self.ids:
            return False
        return bool(self.prompt) or self.label is not None or self.keep != 1

    def starts(self, codec: Codec) -> list[list[int]]:
        """The first token ids of each sample, all of the same length.

        Raises:
            PromptError: the codec cannot read the prompt.
        """
        if not self.needs_codec:
            return self.in_turn([] if self.ids else codec.starts)
        with self._naming_place():
            try:
                start = codec.start(self.prompt, keep=self.keep, label=self.label)
            except UnicodeEncodeError as error:
                raise PromptError(
                    f"prompt: should be UTF-8, got {self.prompt!r}",
                    hint="a prompt in another encoding can be converted with iconv",
                ) from error
        return [start] * self.samples

    def in_turn(self, starts: Sequence[list[int]]) -> list[list[int]]:
        """A start for each sample: the ids of the request, or the given ones, in turn."""
        if self.ids:
            return [list(self.ids)] * self.samples
        return [starts[i % len(starts)] for i in range(self.samples)]

    def stops(self, stop_tokens: Sequence[int], codec: Codec | None) -> Stops:
        """What ends each sample.

        Args:
            stop_tokens: those of the codec.
            codec: needed for stop texts only.

        Raises:
            UsageError: there are stop texts, but the samples are no text.
        """
        own = stop_tokens if self.stop_tokens is None else self.stop_tokens
        tokens = () if self.ignore_stop else tuple(own)
        if not self.stop:
            return Stops(tokens)
        if not isinstance(codec, TextCodec):
            raise UsageError("only text can end at a stop text", hint="leave --stop out")
        return Stops(tokens, tuple(text.encode() for text in self.stop), codec.token_bytes)

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
            with self._naming_place():
                raise PromptError("the prompt already fills the sample", hint="--keep 0.5")
        return min(self.tokens or rest, rest)

    @contextmanager
    def _naming_place(self) -> Iterator[None]:
        """Add the place of the prompt to errors."""
        try:
            yield
        except PromptError as error:
            if not self.place:
                raise
            raise PromptError(f"{self.place}: {error}", hint=error.hint) from error


@dataclass(frozen=True)
class Samples:
    """Samples while they are drawn. Each is drawn once: at the first call that needs it."""

    prompt: str
    samples: list[Sample]
    steps: Iterator[None]
    """Iterating it draws: a step adds a token to each sample that is under way."""

    @classmethod
    def start(
        cls,
        prompt: str,
        starts: Sequence[list[int]],
        stops: Stops,
        drawn: Iterable[Sequence[int]],
        *,
        count: int | None = None,
    ) -> "Samples":
        """Samples of which nothing is drawn yet.

        Args:
            prompt: that they continue.
            starts: the token ids that each begins with.
            stops: what ends each.
            drawn: yields the next token of every sample; asked for no more once all have ended.
            count: how many tokens there are of each; None if `drawn` says it.
        """
        samples = [Sample(start, stops, count=count) for start in starts]

        def steps() -> Iterator[None]:
            for tokens in drawn:
                for sample, token in zip(samples, tokens, strict=True):
                    sample.add(token)
                yield
                if all(sample.ended for sample in samples):
                    return

        return cls(prompt, samples, steps())

    @property
    def starts(self) -> list[list[int]]:
        """The token ids that each sample begins with."""
        return [sample.start for sample in self.samples]

    def drawn(self) -> list[Sample]:
        """Draw to the end."""
        for _ in self.steps:
            pass
        return self.samples

    def token_ids(self) -> list[list[int]]:
        """Draw to the end; the token ids of every sample with its start."""
        return [sample.tokens for sample in self.drawn()]

    def id_lines(self) -> bytes:
        """Draw to the end; the token ids as text, a line for every sample."""
        return "".join(" ".join(map(str, row)) + "\n" for row in self.token_ids()).encode()

    def texts(self, codec: TextCodec) -> list[str]:
        """Draw to the end; the text of every sample with its start."""
        return [sample.text(codec) for sample in self.drawn()]

    def contents(self, codec: Codec) -> list[bytes]:
        """Draw to the end; return the contents of files in the codec's format.

        Texts share one file, with a line of dashes between them, and so do images, on a sheet. In
        any other format every sample is a file of its own.
        """
        match codec:
            case TextCodec():
                return ["".join(self.pieces(codec)).encode()]
            case ImageCodec():
                kept = len(self.starts[0])
                return [codec.sheet(self.token_ids(), prompt=self.prompt, kept=kept)]
            case _:
                return [codec.decode(row) for row in self.token_ids()]

    def pieces(self, codec: TextCodec) -> Iterator[str]:
        """Draw texts; the first one piece by piece: its start, then what each token adds.

        A character appears when its last token is drawn, and when it is certain that it does not
        belong to a stop text. The other texts, which are drawn meanwhile, follow whole, each after
        a line of dashes.
        """
        first, *others = self.samples
        yield from first.pieces(codec, self.steps)
        for other in others:
            yield RULE + other.text(codec)


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
    starts, size = request.starts(codec), request.samples
    count = request.count(starts[0], codec.length)
    chosen = generate(decoder, starts, tokens=count, sampling=sampling, samples=size)
    drawn, stops = (row.tolist() for row in chosen), request.stops(codec.stop_tokens, codec)
    return Samples.start(request.prompt, starts, stops, drawn, count=count)
