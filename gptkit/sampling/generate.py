"""The token loop over any decoder, torch's or onnxruntime's. Imports no torch."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from gptkit.sampling.rule import Floats, Ints, SamplingOptions, choose, numbers, uniforms


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
    start = np.array(prompt, dtype=np.int64)[..., -decoder.block_size :]
    context = _Context(decoder, np.broadcast_to(start, (samples, start.shape[-1])).copy())
    for draw in range(tokens):
        chosen = choose(context.logits, uniforms(sampling.seed, draw, samples), sampling)
        yield chosen
        if draw + 1 < tokens:
            context.append(chosen)


def generate_each(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: Sequence[int],
    sampling: SamplingOptions,
    seeds: Sequence[int],
) -> Iterator[list[int | None]]:
    """Draw from prompts of any length together, each as `generate` would draw from it alone.

    All rows begin at position 0 and advance together. A row whose prompt is longer is fed its next
    token while the others are fed what they drew, so their caches are full at the same time, too.

    Args:
        decoder: made for a batch of as many rows as there are prompts.
        prompts: token ids, at least one for every row.
        tokens: how many to draw for each row.
        sampling: options of the sampling rule, except the seed.
        seeds: of each row.

    Yields:
        The next token of every row; None for one whose prompt is not read yet, or that is complete.
    """
    rows = [list(prompt)[-decoder.block_size :] for prompt in prompts]
    lengths, counts = np.array([len(row) for row in rows]), np.array(tokens)
    fed = np.zeros((len(rows), lengths.max()), np.int64)
    for row, ids in enumerate(rows):
        fed[row, : len(ids)] = ids
    position, last = int(lengths.min()), int((lengths + counts).max())
    context, streams = _Context(decoder, fed[:, :position]), np.array(seeds, np.uint64)
    while True:
        draws = position - lengths  # negative within a prompt
        u = numbers(streams, np.maximum(draws, 0).astype(np.uint64))
        chosen, drawing = choose(context.logits, u, sampling), (draws >= 0) & (draws < counts)
        yield [int(token) if on else None for token, on in zip(chosen, drawing, strict=True)]
        position += 1
        if position >= last:
            return
        context.append(np.where(draws < 0, fed[:, min(position, fed.shape[1]) - 1], chosen))


class _Context:
    """The tokens that a decoder has seen, within the block size, and the logits of the next."""

    def __init__(self, decoder: Decoder, tokens: Ints) -> None:
        self.decoder, self.tokens = decoder, tokens
        self.logits = decoder.prefill(tokens)

    def append(self, tokens: Ints) -> None:
        """Feed one token per row, (B,); restart from the last part if the cache is full."""
        size = self.decoder.block_size
        self.tokens = np.concatenate([self.tokens, tokens[:, None]], axis=1)[:, -size:]
        if self.decoder.length == size:
            self.logits = self.decoder.prefill(self.tokens[:, -restart_length(size) :])
        else:
            self.logits = self.decoder.step(tokens[:, None])


def restart_length(block_size: int) -> int:
    """Tokens that are kept as the new prompt when the cache is full."""
    return max(1, block_size // 2)
