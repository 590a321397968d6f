"""Split: one part of a data set, as windows or items that are gathered by index."""

from abc import ABC, abstractmethod

from torch import Tensor

IGNORE = -100
"""A target that carries no loss."""


class Split(ABC):
    """One part of a data set: windows or items that are gathered by index."""

    stride: int = 1
    """Step between the indices in one pass over the split: 1 for separate items, block_size for a
    stream, in which the windows of neighbouring indices overlap."""

    labels: Tensor | None = None
    """The class of every item, int64 (len(self),); None if items have no classes."""

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
