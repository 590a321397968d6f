"""Model: what was loaded from a checkpoint or from an exported file. Imports no torch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from gptkit.arguments import checked
from gptkit.codec import Codec, TextCodec
from gptkit.errors import UsageError
from gptkit.sampling.generate import restart_length
from gptkit.sampling.rule import Floats, Ints, SamplingOptions
from gptkit.sampling.samples import SampleRequest, Samples


class Model(ABC):
    """A trained model with its codec: draws samples, and measures texts.

    A sample is that of `gptkit sample` with the same options: it begins with its prompt, and the
    same seed draws the same sample.
    """

    @property
    @abstractmethod
    def codec(self) -> Codec:
        """Reads prompts and writes samples."""

    @property
    @abstractmethod
    def block_size(self) -> int:
        """Tokens of context."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids, which are 0 .. vocab_size - 1."""

    @property
    @abstractmethod
    def temperature(self) -> float:
        """The default sampling temperature."""

    @property
    @abstractmethod
    def provider(self) -> str | None:
        """The execution provider of onnxruntime; None if torch runs the model."""

    @abstractmethod
    def draw(
        self, request: SampleRequest, sampling: SamplingOptions, *, streaming: bool = False
    ) -> Samples:
        """Start to draw samples as token ids, which `sample` and `stream` turn into text.

        Args:
            request: which samples.
            sampling: options of the rule.
            streaming: yield the first tokens as early as possible.

        Raises:
            PromptError: the codec cannot read the prompt, or the prompt already fills the sample.
        """

    def draw_each(
        self, requests: Sequence[SampleRequest], sampling: SamplingOptions, seeds: Sequence[int]
    ) -> Samples:
        """Start to draw a sample for every request; each is what `draw` gives for it alone.

        Args:
            requests: each for one sample.
            sampling: options of the rule, except the seed.
            seeds: one for every request.

        Raises:
            PromptError: the codec cannot read a prompt, or a prompt already fills its sample.
        """
        pairs = zip(requests, seeds, strict=True)
        drawings = [self.draw(request, replace(sampling, seed=seed)) for request, seed in pairs]
        samples = [sample for drawing in drawings for sample in drawing.samples]
        return Samples("", samples, chain.from_iterable(drawing.steps for drawing in drawings))

    @abstractmethod
    def logits(self, tokens: Ints) -> Floats:
        """Unnormalised log-probabilities of the token after each token.

        Args:
            tokens: int64 (T,), at most block_size.

        Returns:
            float32 (T, vocab_size).

        Raises:
            UsageError: the tokens are no ids of the model, or too many.
        """

    @abstractmethod
    def features(self, tokens: Ints) -> Floats:
        """The residual stream after the last norm; arguments as for `logits`.

        Returns:
            float32 (T, n_embd).
        """

    @checked
    def sample(
        self,
        prompt: str = "",
        *,
        tokens: int | None = None,
        seed: int = 0,
        samples: int | None = None,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        keep: float = 1.0,
        label: str | None = None,
        stop: str | Sequence[str] | None = None,
        ignore_stop: bool = False,
    ) -> str | bytes | list[str] | list[bytes]:
        """Draw a sample, or a list of samples that are drawn together.

        Args:
            prompt: what to continue: a text, or the path of an image.
            tokens: how many to draw; None draws the rest of an image, or 500 of a text.
            seed: the same seed draws the same sample.
            samples: how many to draw, as a list; None draws one, which is returned itself.
            temperature: divides the logits; 0 takes the likeliest token; None takes the codec's.
            top_k: keep this many of the likeliest tokens; 0 keeps all.
            top_p: keep the likeliest tokens until their probabilities sum to this.
            keep: the fraction of the prompt to keep, from its beginning, 0 to 1.
            label: the class to draw from.
            stop: a text, or several, that end a sample, each before itself; None: no text does.
            ignore_stop: do not end at the codec's stop tokens.

        Returns:
            A text as `str`; a picture, or what else the codec writes, as the `bytes` of a file.

        Raises:
            UsageError: an option is out of range, or the prompt or a stop text is no `str`.
            PromptError: the codec cannot read the prompt, or the prompt already fills the sample.
        """
        request = SampleRequest(
            prompt,
            tokens=tokens,
            samples=1 if samples is None else samples,
            keep=keep,
            label=label,
            stop=_texts(stop),
            ignore_stop=ignore_stop,
        )
        drawn = self.draw(request, self._sampling(temperature, top_k, top_p, seed))
        codec = self.codec
        if isinstance(codec, TextCodec):
            texts = drawn.texts(codec)
            return texts[0] if samples is None else texts
        contents = [codec.decode(row) for row in drawn.token_ids()]
        return contents[0] if samples is None else contents

    @checked
    def stream(
        self,
        prompt: str = "",
        *,
        tokens: int | None = None,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        keep: float = 1.0,
        stop: str | Sequence[str] | None = None,
        ignore_stop: bool = False,
    ) -> Iterator[str]:
        """Draw a text piece by piece; the pieces together are what `sample` returns.

        Args:
            prompt: the text to continue; it is the first piece.
            tokens: how many to draw; None draws 500.
            seed: the same seed draws the same text.
            temperature: as for `sample`, like the following.
            top_k: as for `sample`.
            top_p: as for `sample`.
            keep: as for `sample`.
            stop: as for `sample`.
            ignore_stop: as for `sample`.

        Yields:
            Whole characters, as soon as it is certain that they do not belong to a stop text.

        Raises:
            UsageError: an option is out of range, the prompt or a stop text is no `str`, or the
                model draws no text.
            PromptError: the codec cannot read the prompt.
        """
        if not isinstance(self.codec, TextCodec):
            raise UsageError(
                f"samples are {self.codec.suffix} files, which cannot be streamed",
                hint="model.sample(...) returns the contents of a file",
            )
        request = SampleRequest(
            prompt, tokens=tokens, keep=keep, stop=_texts(stop), ignore_stop=ignore_stop
        )
        sampling = self._sampling(temperature, top_k, top_p, seed)
        return self.draw(request, sampling, streaming=True).pieces(self.codec)

    @checked
    def stream_tokens(
        self,
        ids: Sequence[int],
        *,
        tokens: int | None = None,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        stop_tokens: Sequence[int] | None = None,
    ) -> Iterator[int]:
        """Draw token ids one by one after given ones, which no codec has to make.

        For prompts that no text stands for, such as those of a chat. Ids that are the codec's own
        start of a prompt draw what `stream` draws.

        Args:
            ids: what to continue, at least one; of more than block_size, the last ones count.
            tokens: how many to draw; as for `sample`, like the following.
            seed: the same seed draws the same tokens.
            temperature: as for `sample`.
            top_k: as for `sample`.
            top_p: as for `sample`.
            stop_tokens: ids that end it; None: the codec's, () for none.

        Yields:
            Each id as soon as it is drawn; fewer than `tokens` if a stop token ends them, which
            is not among them.

        Raises:
            UsageError: these are no ids of the model, or an option is out of range.
            PromptError: the ids already fill a sample of fixed length.
        """
        check_ids(np.array(ids), self.vocab_size, most=None)
        stops = None if stop_tokens is None else tuple(map(int, stop_tokens))
        request = SampleRequest(ids=tuple(map(int, ids)), tokens=tokens, stop_tokens=stops)
        sampling = self._sampling(temperature, top_k, top_p, seed)
        drawn = self.draw(request, sampling, streaming=True)
        return drawn.samples[0].new_tokens(drawn.steps)

    @checked
    def logprobs(self, text: str) -> Floats:
        """How likely a text is: the logarithm of the probability of each token but the first.

        The context of a token is what it would be if the text were drawn: all tokens before it,
        at most block_size; when these are full, half of them are kept.

        Args:
            text: what `codec.encode` reads, n tokens.

        Returns:
            float32 (n - 1,), natural logarithms; minus their mean is the loss in nats per token.

        Raises:
            PromptError: the codec cannot read the text.
        """
        tokens = self._encode(text)
        found = [np.zeros(0, np.float32)]
        for start, stop, skip in windows(len(tokens) - 1, self.block_size):
            logits = self.logits(tokens[start:stop])[skip:]
            found.append(_log_softmax(logits, tokens[start + skip + 1 : stop + 1]))
        return np.concatenate(found)

    @checked
    def embed(self, text: str) -> Floats:
        """A text as one vector: the features after the last norm, averaged over its tokens.

        The context of a token is the same as in `logprobs`.

        Args:
            text: what `codec.encode` reads.

        Returns:
            float32 (n_embd,).

        Raises:
            PromptError: the codec cannot read the text.
        """
        tokens = self._encode(text)
        parts = windows(len(tokens), self.block_size)
        found = [self.features(tokens[start:stop])[skip:] for start, stop, skip in parts]
        mean: Floats = np.concatenate(found).mean(axis=0)
        return mean

    def _encode(self, text: str) -> Ints:
        return np.array(self.codec.encode(text), dtype=np.int64)

    def _sampling(
        self, temperature: float | None, top_k: int, top_p: float, seed: int
    ) -> SamplingOptions:
        chosen = self.temperature if temperature is None else temperature
        return SamplingOptions(temperature=chosen, top_k=top_k, top_p=top_p, seed=seed)


def check_ids(tokens: Ints, vocab_size: int, *, most: int | None) -> None:
    """Raise a UsageError if these are no ids (T,) of the model's tokens, or too many or too few.

    Args:
        tokens: what should be int64 (T,).
        vocab_size: of the model.
        most: the largest T; None if there is no limit.
    """
    ids = isinstance(tokens, np.ndarray) and tokens.ndim == 1 and tokens.dtype.kind in "iu"
    if not ids or not 1 <= len(tokens) <= (most or len(tokens)):
        size = "one or more" if most is None else f"1 to {most}"
        raise UsageError(f"tokens should be an array of {size} integers, got {tokens!r}")
    wrong = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if wrong.size:
        raise UsageError(f"tokens should be ids from 0 to {vocab_size - 1}, got {wrong[0]}")


def windows(count: int, block_size: int) -> Iterator[tuple[int, int, int]]:
    """The contexts that the sampling rule reads a text of `count` tokens in.

    Yields:
        start and stop of each window, and how many of its tokens an earlier window had.
    """
    start = skip = 0
    while start + skip < count:
        stop = min(start + block_size, count)
        yield start, stop, skip
        start = stop + 1 - restart_length(block_size)
        skip = stop - start


def _texts(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _log_softmax(logits: Floats, tokens: Ints) -> Floats:
    """The log-probability of a token by each row of logits, (T, vocab_size) to (T,)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, tokens[:, None], axis=-1)[:, 0]
    found: Floats = chosen - np.log(np.exp(shifted).sum(axis=-1))
    return found
