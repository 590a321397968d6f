"""Split: one part of a data set, as windows or items that can be gathered by number."""

from abc import ABC, abstractmethod

from torch import Tensor

IGNORE = -100
"""A target that carries no loss."""


class Split(ABC):
    """One part of a data set: windows or items that can be gathered by number."""

    stride: int = 1
    """Distance between the numbers that one pass over the whole split visits: 1 for separate items,
    block_size where neighbouring numbers are overlapping windows of one stream."""

    labels: Tensor | None = None
    """The class of every item, int64 (len(self),); None where items have no classes."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of start positions or items."""

    @abstractmethod
    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets by number, in one vectorised gather.

        Args:
            indices: int64 (B,), each in 0 .. len(self) - 1.

        Returns:
            x and y, both int64 (B, block_size) on the CPU; a target of `IGNORE` carries no loss.
        """
