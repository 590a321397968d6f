"""Windows: a split whose tokens lie in several files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptkit.plugin import Split, read_tokens
from gptkit_text.order import Order, drawn


@dataclass(frozen=True)
class Segment:
    """Some of the tokens in a file."""

    path: Path
    start: int
    stop: int


def length(segments: Sequence[Segment]) -> int:
    """How many tokens there are."""
    return sum(segment.stop - segment.start for segment in segments)


def cut(segments: Sequence[Segment], start: int, stop: int) -> list[Segment]:
    """The tokens from `start` to `stop` of a stream of segments."""
    found, begin = [], 0
    for part in segments:
        size = part.stop - part.start
        low, high = max(start - begin, 0), min(stop - begin, size)
        if low < high:
            found.append(Segment(part.path, part.start + low, part.start + high))
        begin += size
    return found


class Windows(Split):
    """The windows of a stream of tokens; a batch reads only its own.

    Args:
        segments: the stream.
        dtype: the type of a stored token.
        block_size: tokens of a window.
        order: of the training; None for draws with replacement.
        names: of the order's sources, for the metrics.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        dtype: str,
        *,
        block_size: int,
        order: Order | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self.segments, self.dtype, self.stride = tuple(segments), np.dtype(dtype), block_size
        self._ends = np.cumsum([part.stop - part.start for part in segments], dtype=np.int64)
        self._order, self._names = order, tuple(names)

    def __len__(self) -> int:
        return max(0, int(self._ends[-1]) - self.stride) if len(self._ends) else 0

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        windows = torch.from_numpy(self._gather(indices.numpy()))
        # `contiguous` does not copy a single window: y would share the memory of x.
        return windows[:, :-1].contiguous(), windows[:, 1:].clone()

    def indices(self, seed: int, step: int, batch_size: int) -> Tensor:
        """The windows of a step's batch, in the order of this split."""
        if self._order is None:
            return super().indices(seed, step, batch_size)
        return torch.from_numpy(self._order.starts(seed, step, batch_size))

    def metrics(self, seed: int, step: int, batch_size: int) -> dict[str, float]:
        """How many tokens of each source were trained on, if the batches were equally large."""
        if self._order is None:
            return {}
        counts = drawn(step * batch_size, self._order.weights)
        return {
            f"tokens_{name}": float(count * self.stride)
            for name, count in zip(self._names, counts, strict=False)
        }

    def _gather(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens (B, block_size + 1); a window may lie in several files."""
        found = np.empty((len(starts), self.stride + 1), self.dtype)
        first = np.searchsorted(self._ends, starts, side="right")
        last = np.searchsorted(self._ends, starts + self.stride, side="right")
        for i in range(int(first.min()), int(last.max()) + 1):
            rows = np.flatnonzero((first <= i) & (i <= last))
            if len(rows):
                part, pieces = self.segments[i], self._pieces(i, starts[rows].tolist(), found, rows)
                read_tokens(part.path, pieces, count=part.stop)
        return found.astype(np.int64)

    def _pieces(
        self, i: int, starts: list[int], found: NDArray[Any], rows: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """What segment i has of these windows: where in its file, and where it goes to."""
        part, end = self.segments[i], int(self._ends[i])
        begin = end - (part.stop - part.start)
        for start, row in zip(starts, rows, strict=True):
            low, high = max(start, begin), min(start + self.stride + 1, end)
            yield part.start + low - begin, found[row, low - start : high - start]
