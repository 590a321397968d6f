"""Windows that hold whole conversations, several where they fit."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptkit.plugin import IGNORE, Split
from gptkit_text.order import Order

Ints = NDArray[np.int64]


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Put items together so that the lengths of each group sum up to at most `room`.

    The longest first, each where the least room is left over (best fit decreasing).

    Args:
        lengths: each at most `room`.
        room: of a group.

    Returns:
        The numbers of the items of each group, both in ascending order.
    """
    groups: list[list[int]] = []
    rooms: list[int] = []  # ascending, those that some group has left
    by_room: dict[int, list[int]] = {}
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(rooms, lengths[item])
        if at == len(rooms):
            group, left = len(groups), room
            groups.append([])
        else:
            left = rooms[at]
            group = by_room[left].pop()
            if not by_room[left]:
                del by_room[left]
                rooms.pop(at)
        groups[group].append(item)
        if rest := left - lengths[item]:
            if rest not in by_room:
                insort(rooms, rest)
            by_room.setdefault(rest, []).append(group)
    return sorted(sorted(group) for group in groups)


class Conversations(Split):
    """Windows of whole conversations; targets are what the assistant wrote.

    Args:
        ids: the tokens of all conversations, one after the other.
        learned: which of them carry loss.
        starts: where each conversation begins in `ids`, and where the last one ends, (n + 1,).
        windows: the numbers of the conversations in each window.
        block_size: tokens of a window.
        filler: the id after each conversation, and where a window is not full.
        shuffle: walk all windows once per epoch; otherwise they are drawn with replacement.
    """

    def __init__(
        self,
        ids: NDArray[Any],
        learned: NDArray[np.bool_],
        starts: Ints,
        *,
        windows: Sequence[Sequence[int]],
        block_size: int,
        filler: int,
        shuffle: bool,
    ) -> None:
        self._ids, self._learned, self._starts = ids, learned, starts
        self.windows, self._block_size, self._filler = windows, block_size, filler
        self._order = Order((len(windows) + 1,), (1,), 1, shuffle=True) if shuffle else None

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        shape = len(indices), self._block_size
        x, y = np.full(shape, self._filler, np.int64), np.full(shape, IGNORE, np.int64)
        for row, window in enumerate(indices.tolist()):
            column = 0
            for conversation in self.windows[window]:
                start, stop = self._starts[conversation : conversation + 2]
                size = int(stop - start) - 1
                part = slice(column, column + size)
                targets = self._ids[start + 1 : stop].astype(np.int64)
                x[row, part] = self._ids[start : stop - 1]
                y[row, part] = np.where(self._learned[start + 1 : stop], targets, IGNORE)
                column += size + 1  # the last token is only a target: the filler is in its place
        return torch.from_numpy(x), torch.from_numpy(y)

    def indices(self, seed: int, step: int, batch_size: int) -> Tensor:
        """The windows of a step's batch, in the order of this split."""
        if self._order is None:
            return super().indices(seed, step, batch_size)
        return torch.from_numpy(self._order.starts(seed, step, batch_size))
