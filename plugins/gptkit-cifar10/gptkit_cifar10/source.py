"""What every source of images gives: pixels with labels, piece by piece."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gptkit_cifar10.picture import Pixels

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Chunk:
    """Images that follow each other in one split."""

    pixels: Pixels
    """(n, size, size, 3)."""
    labels: Labels
    """(n,), indices into the source's classes."""
    training: bool
    """Whether they are for training, or for validation."""


class Source(Protocol):
    """Images in classes, split into training and validation."""

    @property
    def sha256(self) -> str:
        """Digest of the contents."""

    @property
    def key(self) -> str:
        """The contents and everything else that determines the chunks, but for the size."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by label."""

    def chunks(self, size: int) -> Iterator[Chunk]:
        """All images resized to `size`: first those for training, then those for validation.

        Raises:
            DataError: an image, or what holds it, cannot be read.
        """
