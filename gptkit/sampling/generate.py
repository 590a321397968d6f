"""The token loop over any decoder, torch's or onnxruntime's. Imports no torch."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from gptkit.sampling.rule import Floats, Ints, SamplingOptions, choose, uniforms


class Decoder(Protocol):
    """A model with a cache that holds up to `block_size` tokens."""

    block_size: int

    @property
    def length(self) -> int:
        """Tokens in the cache."""

    def prefill(self, tokens: Ints) -> Floats:
        """Empty the cache, then feed tokens (B, T); logits of the next token, (B, vocab_size)."""

    def step(self, tokens: Ints) -> Floats:
        """Feed tokens (B, T) that follow the earlier ones; logits of the next, (B, vocab_size)."""


def generate(
    decoder: Decoder,
    prompt: Sequence[int] | Sequence[Sequence[int]],
    *,
    tokens: int,
    sampling: SamplingOptions,
    samples: int = 1,
) -> Iterator[Ints]:
    """Draw tokens one after the other.

    A prompt longer than block_size is cut to its last block_size tokens. When the cache is full,
    sampling restarts with the last `restart_length` tokens as the new prompt.

    Args:
        decoder: made for a batch of `samples`.
        prompt: token ids, at least one; or a list for every sample, all of the same length.
        tokens: how many to draw.
        sampling: options of the sampling rule.
        samples: rows drawn together, each with random numbers of its own.

    Yields:
        The next token of every row, int64 (samples,).
    """
    block_size = decoder.block_size
    start = np.array(prompt, dtype=np.int64)[..., -block_size:]
    window = np.broadcast_to(start, (samples, start.shape[-1])).copy()
    logits = decoder.prefill(window)
    for draw in range(tokens):
        chosen = choose(logits, uniforms(sampling.seed, draw, samples), sampling)
        yield chosen
        if draw + 1 == tokens:
            return
        window = np.concatenate([window, chosen[:, None]], axis=1)[:, -block_size:]
        if decoder.length == block_size:
            logits = decoder.prefill(window[:, -restart_length(block_size) :])
        else:
            logits = decoder.step(chosen[:, None])


def restart_length(block_size: int) -> int:
    """Tokens that are kept as the new prompt when the cache is full."""
    return max(1, block_size // 2)
