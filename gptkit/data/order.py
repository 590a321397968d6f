"""The order of the data: batches as a pure function of (seed, step), fixed evaluation windows."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gptkit.data.split import IGNORE, Split


def batch_indices(size: int, batch_size: int, *, seed: int, step: int) -> Tensor:
    """Indices of the windows in a step's batch: int64 (batch_size,), each in 0 .. size - 1.

    Drawn with replacement from the counter-based generator Philox (Salmon et al. 2011), so that
    nothing needs to be stored to continue a run. Its raw bits are the same in every numpy version;
    the remainder of 64 random bits is uniform up to size / 2**64.
    """
    philox = np.random.Philox(key=np.array([seed, step], dtype=np.uint64))
    return torch.from_numpy((philox.random_raw(batch_size) % np.uint64(size)).astype(np.int64))


def walk(split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches that cover a split once, every target counted exactly once.

    Windows start a stride apart. The last one may overlap the one before it; the targets that were
    counted there are masked.
    """
    last = len(split) - 1
    windows = -(-last // split.stride) + 1
    overlap = (windows - 1) * split.stride - last
    for first in range(0, windows, batch_size):
        chosen = torch.arange(first, min(first + batch_size, windows))
        x, y = split[(chosen * split.stride).clamp(max=last)]
        if overlap and first + batch_size >= windows:
            y = y.clone()
            y[-1, :overlap] = IGNORE
        yield x, y
