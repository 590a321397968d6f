"""The order of windows: pure functions of the seed and a draw's number, so nothing is to be kept.

A draw is one window of a batch; draws are counted from the first of a training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
U64 = NDArray[np.uint64]

ROUNDS = 6
POWERS_OF_4 = 4 ** np.arange(32, dtype=np.uint64)
LARGEST_SUM = 1 << 31  # of weights: a product of two stays below 2**63


@dataclass(frozen=True)
class Order:
    """Which windows of a stream a training draws: from one source, or a mixture of several.

    Attributes:
        tokens: How many each source has; in the stream they lie one after the other.
        weights: How often each source is drawn from; whole numbers.
        block_size: Tokens of a window.
        shuffle: Whether the windows of a source come once each before they come again; otherwise
            they are drawn with replacement, from every position.
    """

    tokens: tuple[int, ...]
    weights: tuple[int, ...]
    block_size: int
    shuffle: bool

    def starts(self, seed: int, step: int, batch_size: int) -> Ints:
        """The positions in the stream at which the windows of a step's batch begin."""
        draws = np.arange(step * batch_size, (step + 1) * batch_size)
        source, number = interleave(draws, self.weights)
        tokens, start = np.array(self.tokens), np.cumsum([0, *self.tokens])
        if self.shuffle:
            found = epochs(seed, source, number, tokens[source], block_size=self.block_size)
        else:  # as in `Split.indices`
            philox = np.random.Philox(key=np.array([seed, step], dtype=np.uint64))
            positions = (tokens[source] - self.block_size).astype(np.uint64)
            found = (philox.random_raw(batch_size) % positions).astype(np.int64)
        return start[source] + found


def epochs(seed: int, source: Ints, number: Ints, tokens: Ints, *, block_size: int) -> Ints:
    """The positions of windows side by side, each once per epoch.

    The tokens that are left over at the end of a source are others in every epoch.

    Args:
        seed: of the order.
        source: whose windows, as a number for each draw.
        number: of the earlier draws from that source.
        tokens: of that source.
        block_size: tokens of a window.
    """
    windows, left = np.divmod(tokens - 1, block_size)
    epoch, place = np.divmod(number, windows)
    key = mixed(mixed(mixed(np.full(len(source), seed)) + as_u64(source)) + as_u64(epoch))
    shift = (mixed(key) % as_u64(left + 1)).astype(np.int64)
    return shift + shuffled(place, windows, key) * block_size


def shuffled(numbers: Ints, size: Ints | int, key: U64 | int) -> Ints:
    """Where a random permutation of 0 .. size - 1 takes numbers; it is never written out.

    A Feistel network permutes the numbers below a power of 4. What it takes outside of the range
    goes through it again until it is inside (Black and Rogaway 2002).

    Args:
        numbers: each in 0 .. size - 1.
        size: of the permutation, at most 2**62; one, or one for each number.
        key: selects the permutation; one, or one for each number.
    """
    limit, first, found = np.broadcast_arrays(as_u64(size), as_u64(key), as_u64(numbers))
    half = np.maximum(np.searchsorted(POWERS_OF_4, limit), 1).astype(np.uint64)
    keys, found, outside = _round_keys(first), found.copy(), np.arange(len(found))
    while len(outside):
        found[outside] = _feistel(found[outside], half[outside], keys[:, outside])
        outside = outside[found[outside] >= limit[outside]]
    return found.astype(np.int64)


def interleave(draws: Ints, weights: Sequence[int]) -> tuple[Ints, Ints]:
    """The source of each draw, and how many earlier draws were from that source.

    The sources take turns as evenly as whole numbers allow; `drawn` says how often.

    Args:
        draws: their numbers, from 0.
        weights: of the sources, whole numbers with a sum below 2**31.
    """
    source, number = np.full(len(draws), len(weights) - 1), draws.astype(np.int64)
    open_ = np.ones(len(draws), bool)
    for i in range(len(weights) - 1):
        total = sum(weights[i:])
        before = _share(number, weights[i], total)
        taken = open_ & (_share(number + 1, weights[i], total) > before)
        source[taken] = i
        number = np.where(taken, before, np.where(open_, number - before, number))
        open_ &= ~taken
    return source, number


def drawn(draws: int, weights: Sequence[int]) -> list[int]:
    """How many of the first draws are from each source."""
    counts, left = [], draws
    for i, weight in enumerate(weights):
        counts.append(left * weight // sum(weights[i:]))
        left -= counts[-1]
    return counts


def whole(weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers in the same proportion; nearly, if they would be too large."""
    exact = [Fraction(str(weight)) for weight in weights]
    total = sum(exact, start=Fraction(0))
    scale = Fraction(lcm(*(weight.denominator for weight in exact)))
    if total * scale >= LARGEST_SUM:
        scale = (LARGEST_SUM - 2 * len(exact)) / total
    return tuple(max(1, round(weight * scale)) for weight in exact)


def mixed(values: U64 | Ints) -> U64:
    """Well mixed 64 bits of other 64 bits: the finaliser of SplitMix64 (Steele et al. 2014)."""
    x = as_u64(values) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def as_u64(values: U64 | Ints | int) -> U64:
    """Numbers as unsigned ones of 64 bits, whose sums and products wrap around."""
    return np.atleast_1d(values).astype(np.uint64, copy=False)


def _round_keys(key: U64) -> U64:
    """The keys of a network's rounds, (ROUNDS, n)."""
    keys = [key]
    for _ in range(ROUNDS):
        keys.append(mixed(keys[-1]))
    return np.stack(keys[1:])


def _feistel(numbers: U64, half: U64, keys: U64) -> U64:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = numbers >> half, numbers & mask
    for key in keys:
        left, right = right, left ^ (mixed(right + key) & mask)
    return left << half | right


def _share(number: Ints, weight: int, total: int) -> Ints:
    """Give `number * weight // total`, where the product may need more than 64 bits."""
    turns, rest = number // total, number % total
    return turns * weight + rest * weight // total
