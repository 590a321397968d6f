"""The interface of every source of images: pixels with labels, in chunks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gptkit_cifar10.picture import Pixels

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Chunk:
    """Consecutive images of one split."""

    pixels: Pixels
    """(n, size, size, 3)."""
    labels: Labels
    """(n,), indices into the source's classes."""
    training: bool
    """True for the training split, False for the validation split."""


class ImageSource(Protocol):
    """Images in classes, split into training and validation."""

    @property
    def sha256(self) -> str:
        """Digest of the contents."""

    @property
    def key(self) -> str:
        """Identifies the contents and the split: all that determines the chunks but the size."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by label."""

    def chunks(self, size: int) -> Iterator[Chunk]:
        """All images resized to `size`: first those for training, then those for validation.

        Raises:
            DataError: an image, its folder or its archive cannot be read.
        """
