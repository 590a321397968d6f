"""Remote shards as splits: the next one is fetched and encoded while training goes on."""

import hashlib
import json
from collections.abc import Collection
from contextlib import suppress
from contextvars import copy_context
from threading import Thread

import numpy as np
import torch
from torch import Tensor

from gptkit.plugin import DataError, Split, note, silent
from gptkit_text.addresses import name_of
from gptkit_text.codec import TokenizerCodec
from gptkit_text.remote_text import RemoteText
from gptkit_text.shards import Encoded
from gptkit_text.tokenizer import TokenizerOption, make_codec
from gptkit_text.visits import Visits
from gptkit_text.windows import Windows

PATIENCE = 10.0
"""Seconds that training waits for a shard before it says so."""
TRIES = 10
"""To read a shard that other trainings delete, since cache_gb is too small for all of them."""


def open_first(
    text: RemoteText, tokenizer: TokenizerOption, *, join: bool
) -> tuple[TokenizerCodec, Encoded, str]:
    """The codec and the first shard, which is fetched and encoded unless it is in the store.

    A tokenizer that is trained learns from the first shard.

    Args:
        text: the shards.
        tokenizer: a value of `tokenizer` in the recipe.
        join: leave the end tokens out.

    Returns:
        The codec, the shard, and a digest of the text, as far as it is known.

    Raises:
        DataError: the shard is not what its name says, or there is no room for some like it.
        DownloadError: it cannot be had.
    """
    with text.arrival(0) as first:
        known = [first.source, text.errors]
        key = hashlib.sha256(json.dumps(known).encode()).hexdigest()
        codec = make_codec(tokenizer, first.texts, key=key, join=join)
        found = text.find(0, codec) or first.encode(codec)
    text.measure(found)
    names = [name_of(address) for address in text.addresses]
    return codec, found, hashlib.sha256(json.dumps([known, names]).encode()).hexdigest()


class RemoteShards(Split):
    """The windows of all shards, as if each were as long as the first: see `Visits`.

    A position in another shard is one at the same share of its length.

    Args:
        text: the shards.
        codec: gives their tokens.
        first: the training windows of the first shard.
        shuffle: draw each window once in a visit.
    """

    def __init__(
        self, text: RemoteText, codec: TokenizerCodec, first: Windows, *, shuffle: bool
    ) -> None:
        self.text, self.codec = text, codec
        tokens, block_size = len(first) + first.stride, first.stride
        self.visits = Visits(len(text.addresses), tokens, block_size=block_size, shuffle=shuffle)
        self.stride, self.at_hand = block_size, self.visits.positions
        self._shards = {0: Shard(text, 0, codec, first)}
        self._ahead = _Ahead(text, codec)
        self._next: int | None = None
        self._context = copy_context()  # of `load`, which knows whether to be silent

    def __len__(self) -> int:
        return self.visits.shards * self.visits.span

    def indices(self, seed: int, step: int, batch_size: int) -> Tensor:
        """The windows of a step's batch, in the order of the visits."""
        self._next = self.visits.next_shard(seed, step, batch_size)  # a hint, not a state
        return torch.from_numpy(self.visits.indices(seed, step, batch_size))

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self._context.copy().run(self._gather, indices)

    def _gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        numbers, positions = np.divmod(indices.numpy(), self.visits.span)
        used = np.unique(numbers).tolist()
        x, y = (torch.empty(len(indices), self.stride, dtype=torch.int64) for _ in range(2))
        for number in used:
            rows = torch.from_numpy(np.flatnonzero(numbers == number))
            shard = self._shard(number, keep={0, *used})
            places = positions[rows.numpy()] * len(shard) // self.visits.positions
            # An index beyond the positions, which the order has not, is the last one.
            x[rows], y[rows] = shard[torch.from_numpy(places.clip(max=len(shard) - 1))]
        if self._next is not None:
            self.text.use({0, self._next})
            self._ahead.begin(self._next, keep={0, *used, self._next})
        return x, y

    def _shard(self, number: int, keep: Collection[int]) -> "Shard":
        """The windows of a shard, which are there now."""
        self._ahead.wait_for(number)
        found = self.text.get(number, self.codec, keep=keep)
        if number not in self._shards:
            windows = Windows(found.segments("train"), found.index.dtype, block_size=self.stride)
            if len(windows) < 1:
                raise DataError(
                    f"{self.text.addresses[number]}: too short for block_size {self.stride}: "
                    f"{found.index.train.tokens:,} tokens for training",
                    hint="leave it out of path, or set a smaller block_size",
                )
            self._shards[number] = Shard(self.text, number, self.codec, windows)
        return self._shards[number]


class Shard(Split):
    """Windows of one shard, which is fetched again if another training has deleted it.

    Args:
        text: the shards.
        number: of the shard.
        codec: gives its tokens.
        windows: of the shard when it is encoded.
    """

    def __init__(
        self, text: RemoteText, number: int, codec: TokenizerCodec, windows: Windows
    ) -> None:
        self.text, self.number, self.codec, self.windows = text, number, codec, windows
        self.stride = windows.stride

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        for left in reversed(range(TRIES)):
            folder = self.text.get(self.number, self.codec, keep={0, self.number}).folder
            try:
                return self.windows[indices]
            except DataError:
                if folder.is_dir() or not left:
                    raise
        raise AssertionError


class _Ahead:
    """Fetches and encodes a shard in the background; its errors come when it is needed."""

    def __init__(self, text: RemoteText, codec: TokenizerCodec) -> None:
        self.text, self.codec = text, codec
        self._number: int | None = None
        self._thread: Thread | None = None

    def begin(self, number: int, keep: Collection[int]) -> None:
        """Begin with a shard, unless it was the latest one, or another one is not done."""
        if number == self._number or (self._thread and self._thread.is_alive()):
            return
        self._number = number
        # The process may end while it works.
        self._thread = Thread(
            target=self._get, args=(number, keep), name="gptkit-text-ahead", daemon=True
        )
        self._thread.start()

    def wait_for(self, number: int) -> None:
        """Wait until a shard is there, if it is being fetched."""
        if number != self._number or self._thread is None:
            return
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            note(f"training waits for {self.text.addresses[number]}")
            self._thread.join()

    def _get(self, number: int, keep: Collection[int]) -> None:
        with silent(True), suppress(Exception):
            self.text.get(number, self.codec, keep=keep)
