"""The order of an evaluation: fixed windows that cover a split once."""

from collections.abc import Iterator

import torch
from torch import Tensor

from gptkit.data.split import IGNORE, Split


def windows_of(split: Split) -> int:
    """How many windows a split is measured in."""
    return -(-(len(split) - 1) // split.stride) + 1


def walk(
    split: Split, batch_size: int, batches: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches that cover a split once, every target counted exactly once.

    At most `batches` of them; their windows are spread evenly over the split, which may be sorted,
    as images by class.

    Windows start a stride apart. The last one may overlap the one before it; the targets that were
    counted there are masked.
    """
    last, windows = len(split) - 1, windows_of(split)
    overlap = (windows - 1) * split.stride - last
    count = min(windows, batches * batch_size) if batches else windows
    for first in range(0, count, batch_size):
        chosen = torch.arange(first, min(first + batch_size, count)) * windows // count
        x, y = split[(chosen * split.stride).clamp(max=last)]
        if overlap and chosen[-1] == windows - 1:
            y = y.clone()
            y[-1, :overlap] = IGNORE
        yield x, y
