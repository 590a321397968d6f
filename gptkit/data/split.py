"""Split: one part of a data set, as windows or items that are gathered by index."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

IGNORE = -100
"""A target that carries no loss."""


class Split(ABC):
    """One part of a data set: windows or items that are gathered by index.

    gptkit calls a split in one thread at a time: during training in a thread of its own, which
    reads one step ahead.

    Attributes:
        stride: Step between the indices in one pass over the split: 1 for separate items,
            block_size for a stream, in which the windows of neighbouring indices overlap.
        labels: The class of every item, int64 (len(self),); None if items have no classes.
        at_hand: How many of the first windows or items can be read without a download, so that
            gptkit looks at those before training; None if all can.
    """

    stride: int = 1
    labels: Tensor | None = None
    at_hand: int | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of start positions or items."""

    @abstractmethod
    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets by index, in one vectorised gather.

        Args:
            indices: int64 (B,), each in 0 .. len(self) - 1.

        Returns:
            x and y, both int64 (B, block_size) on the CPU; a target of `IGNORE` carries no loss.
        """

    def indices(self, seed: int, step: int, batch_size: int) -> Tensor:
        """The windows or items of a step's batch, over all ranks, which share it evenly.

        A function of its arguments alone, so that a resumed run sees the same batches. Override it
        for another order, such as epochs. As it stands, it draws with replacement from the
        counter-based generator Philox (Salmon et al. 2011), whose raw bits are the same in every
        numpy version; the remainder of 64 random bits is uniform up to len(self) / 2**64.

        Args:
            seed: the recipe's.
            step: updates done, from 0.
            batch_size: of this step.

        Returns:
            int64 (batch_size,), each in 0 .. len(self) - 1.
        """
        philox = np.random.Philox(key=np.array([seed, step], dtype=np.uint64))
        drawn = philox.random_raw(batch_size) % np.uint64(len(self))
        return torch.from_numpy(drawn.astype(np.int64))

    def metrics(self, seed: int, step: int, batch_size: int) -> dict[str, float]:
        """What is to be logged of the batches before a step, e.g. the tokens of each source.

        A function of its arguments alone, as `indices` is; asked for after every step.

        Args:
            seed: the recipe's.
            step: updates done.
            batch_size: of the latest step.

        Returns:
            Numbers by name, which `TrainState.metrics` then has; nothing by default.
        """
        return {}


def ids_fault(
    ids: Tensor, what: str, axes: Mapping[str, int], *, most: int, masked: bool = False
) -> str | None:
    """What is wrong with token ids, indices or labels; None if nothing is.

    Args:
        ids: what should be int64 on the CPU.
        what: they are, for the message.
        axes: the name and the size of each dimension.
        most: the largest one that may be there; the smallest is 0.
        masked: whether they may be `IGNORE`, too.
    """
    shape = tuple(axes.values())
    if not isinstance(ids, Tensor):
        return f"{what} must be a tensor, not {type(ids).__name__}"
    if ids.dtype != torch.int64:
        return f"{what} must be int64, not {ids.dtype}"
    if ids.device.type != "cpu":
        return f"{what} must be on the CPU, not on {ids.device}"
    if ids.shape != shape:
        names = ", ".join(axes) + ("," if len(axes) == 1 else "")
        return f"{what} must have the shape ({names}) = {shape}, not {tuple(ids.shape)}"
    low, high = (int(end) for end in (ids.where(ids != IGNORE, 0) if masked else ids).aminmax())
    if low < 0 or high > most:
        or_ignore = f", or IGNORE ({IGNORE})" if masked else ""
        return f"{what} must be in 0 .. {most}{or_ignore}: there is {low if low < 0 else high}"
    return None
