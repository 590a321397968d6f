"""The order of remote shards: which windows of which one a training draws. Pure functions."""

from dataclasses import dataclass

import numpy as np

from gptkit_text.order import Ints, as_u64, epochs, mixed, shuffled


@dataclass(frozen=True)
class Visits:
    """Visits to shards, one after the other, as if all were as long as the first.

    A visit draws as many windows as the shard has side by side. An epoch visits every shard once,
    in an order of its own. The very first visit is to the first shard, which is at hand.

    An index names a shard and a position in it: shard * span + position.

    Attributes:
        shards: How many there are.
        tokens: Of the first shard's training split.
        block_size: Tokens of a window.
        shuffle: Whether a visit draws each window once; otherwise with replacement.
    """

    shards: int
    tokens: int
    block_size: int
    shuffle: bool

    @property
    def positions(self) -> int:
        """How many positions of a shard a window may begin at."""
        return self.tokens - self.block_size

    @property
    def windows(self) -> int:
        """How many windows a visit draws."""
        return (self.tokens - 1) // self.block_size

    @property
    def span(self) -> int:
        """Indices of a shard, so many that an epoch's windows are indices by block_size."""
        return self.windows * self.block_size

    def indices(self, seed: int, step: int, batch_size: int) -> Ints:
        """The indices of a step's batch."""
        draws = np.arange(step * batch_size, (step + 1) * batch_size)
        visit, place = np.divmod(draws, self.windows)
        shard = self._shards(seed, visit)
        if self.shuffle:
            number = visit // self.shards * self.windows + place
            tokens = np.full(batch_size, self.tokens)
            position = epochs(seed, shard, number, tokens, block_size=self.block_size)
        else:  # as in `Split.indices`
            philox = np.random.Philox(key=np.array([seed, step], dtype=np.uint64))
            drawn = philox.random_raw(batch_size) % np.uint64(self.positions)
            position = drawn.astype(np.int64)
        return shard * self.span + position

    def next_shard(self, seed: int, step: int, batch_size: int) -> int:
        """The shard of the first visit after a step's batch."""
        last = ((step + 1) * batch_size - 1) // self.windows
        return int(self._shards(seed, np.array([last + 1]))[0])

    def _shards(self, seed: int, visits: Ints) -> Ints:
        epoch, place = np.divmod(visits, self.shards)
        key = mixed(mixed(mixed(mixed(np.full(len(visits), seed)))) + as_u64(epoch))
        found = shuffled(place, self.shards, key)
        first = shuffled(np.zeros_like(place), self.shards, key)
        return np.where(epoch == 0, (found - first) % self.shards, found)
