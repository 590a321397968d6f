"""DecodedModel: a Model that draws from a decoder's logits, by the rule in numpy."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from gptkit.codec import Codec
from gptkit.memory import Need
from gptkit.recipe import sizes
from gptkit.recipe.options import GPTConfig
from gptkit.sampling import samples
from gptkit.sampling.each import sample_each
from gptkit.sampling.generate import Decoder
from gptkit.sampling.model import Model
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.samples import SampleRequest, Samples

LOADED = "use an earlier checkpoint: --checkpoint STEP, or --checkpoint best"
"""What to do where the weights of a checkpoint are not finite."""
TRIED = 32
"""Tokens that a model is tried with."""


class DecodedModel(Model):
    """A model that keeps its decoders between samples. Imports no torch.

    Args:
        config: of the model.
        codec: of the data that it was trained on.
    """

    def __init__(self, config: GPTConfig, codec: Codec) -> None:
        self.config, self._codec = config, codec
        self._decoders: dict[int, Decoder] = {}
        """Those that draw nothing now, by batch size."""

    @abstractmethod
    def make_decoder(self, batch_size: int) -> Decoder:
        """A decoder for that many rows."""

    @abstractmethod
    def memory(self) -> int | None:
        """Bytes of memory where the model is; None if that cannot be known."""

    @property
    def codec(self) -> Codec:
        """Reads prompts and writes samples."""
        return self._codec

    @property
    def block_size(self) -> int:
        """Tokens of context."""
        return self.config.block_size

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.config.vocab_size

    @property
    def temperature(self) -> float:
        """The default sampling temperature."""
        return self.codec.temperature

    def draw(
        self, request: SampleRequest, sampling: SamplingOptions, *, streaming: bool = False
    ) -> Samples:
        """Start to draw samples; the tokens come one by one in any case."""
        size = request.samples
        need = sizes.to_sample(self.config, size, request.tokens or self.block_size)
        need.check(self.memory())
        with need.explained():
            idle = self._decoders
            decoder = idle.pop(size, None) or self.make_decoder(size)
            drawn = samples.sample(decoder, self.codec, request, sampling)
        return replace(drawn, steps=_keeping(decoder, size, idle, drawn.steps, need))

    def draw_each(
        self, requests: Sequence[SampleRequest], sampling: SamplingOptions, seeds: Sequence[int]
    ) -> Samples:
        """Start to draw a sample for every request, several at a time."""
        return sample_each(self._lend_decoder, self.codec, requests, sampling, seeds)

    @contextmanager
    def _lend_decoder(self, size: int) -> Iterator[Decoder]:
        """A decoder for that many rows, which is kept for the next ones."""
        idle = self._decoders
        decoder = idle.pop(size, None) or self.make_decoder(size)
        try:
            yield decoder
        finally:
            idle[size] = decoder


def _keeping(
    decoder: Decoder, size: int, idle: dict[int, Decoder], steps: Iterator[None], need: Need
) -> Iterator[None]:
    """The steps; the decoder is kept for the next samples when they end."""
    try:
        with need.explained():
            yield from steps
    finally:
        idle[size] = decoder
