"""The sampling rule: from logits to token ids, the same in torch, numpy, ONNX or any language.

Randomness is counter-based: draw i of row b in a batch of B uses number n = i * B + b of the seed's
stream, which splitmix64 makes (Steele et al. 2014). The token is found by inverting the cumulative
distribution. All numbers are float32. Imports no torch.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptkit.errors import DivergedError, UsageError

MIN_TEMPERATURE = 1e-6
"""Below this temperature float32 overflows: the likeliest token is taken, as for 0."""
GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of splitmix64."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is chosen from logits.

    Raises:
        UsageError: a value is out of range.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Keep this many of the likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens until their probabilities sum to this (Holtzman et al. 2020)."""
    seed: int = 0
    """Selects the stream of random numbers, 0 to 2**63 - 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UsageError(
                "temperature should be 0 (the likeliest token) or more, and finite, "
                f"got {self.temperature}"
            )
        if self.top_k < 0:
            raise UsageError(f"top_k should be 0 (all) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p should be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed should be 0 to 2**63 - 1, got {self.seed}")


def uniforms(seed: int, draw: int, batch_size: int) -> Floats:
    """The random numbers of one draw, one per row: float32 (batch_size,), in (0, 1]."""
    n = np.arange(batch_size, dtype=np.uint64) + np.uint64(draw * batch_size)
    return numbers(np.uint64(seed), n)


def numbers(seed: NDArray[np.uint64] | np.uint64, n: NDArray[np.uint64]) -> Floats:
    """Number n of a seed's stream, elementwise: float32 in (0, 1]."""
    z = seed + (n + np.uint64(1)) * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX_2)
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(40)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-24)


def choose(logits: Floats, u: Floats, sampling: SamplingOptions) -> Ints:
    """Choose one token per row.

    Args:
        logits: float32 (B, vocab_size).
        u: float32 (B,), in (0, 1].
        sampling: options of the rule.

    Returns:
        Token ids, int64 (B,).

    Raises:
        DivergedError: there is no largest logit, or it is infinite.
    """
    if not np.isfinite(logits.max(axis=-1)).all():
        raise DivergedError("the model's logits are not finite", hint="use an earlier checkpoint")
    if np.float32(sampling.temperature) < np.float32(MIN_TEMPERATURE):
        return np.asarray(logits.argmax(axis=-1), dtype=np.int64)
    scaled = logits / np.float32(sampling.temperature)
    k = min(sampling.top_k or scaled.shape[-1], scaled.shape[-1])
    if k == scaled.shape[-1] and np.float32(sampling.top_p) >= 1:
        return _invert(_softmax(scaled), u)
    order = np.argsort(-scaled, axis=-1, kind="stable")[:, :k]  # ties: the smaller id first
    p = _softmax(np.take_along_axis(scaled, order, axis=-1))
    mass_before = np.cumsum(p, axis=-1, dtype=np.float32) - p
    keep = mass_before < np.float32(sampling.top_p)
    keep[:, 0] = True
    chosen = _invert(np.where(keep, p, np.float32(0)), u)
    chosen = np.minimum(chosen, keep.sum(axis=-1) - 1)
    tokens: Ints = np.take_along_axis(order, chosen[:, None], axis=-1)[:, 0]
    return tokens


def _softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    p: Floats = e / e.sum(axis=-1, keepdims=True)
    return p


def _invert(p: Floats, u: Floats) -> Ints:
    """Per row the number of cumulative sums <= u * total, at most the last index."""
    cumulative = np.cumsum(p, axis=-1, dtype=np.float32)
    target = u[:, None] * cumulative[:, -1:]
    chosen: Ints = np.minimum((cumulative <= target).sum(axis=-1), p.shape[-1] - 1)
    return chosen
