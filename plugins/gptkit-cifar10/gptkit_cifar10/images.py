"""A folder of images of the user's own."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gptkit.plugin import DataError
from gptkit_cifar10.layout import Item, read_layout
from gptkit_cifar10.picture import PictureError, Pixels, read_picture
from gptkit_cifar10.source import Chunk

CHUNK_BYTES = 1 << 23  # of pixels, decoded before they are handed on
MOST_NAMED = 5  # unreadable images


@dataclass(frozen=True)
class Folder:
    """Images in torchvision's ImageFolder layout as a source; made by `open_folder`."""

    root: Path
    classes: tuple[str, ...]
    items: tuple[Item, ...]

    @cached_property
    def sha256(self) -> str:
        """Digest of the files' contents and of their names within the folder."""
        return self._digest()

    @property
    def key(self) -> str:
        """The contents, and which of the images are for training."""
        split = bytes(item.training for item in self._by_name())
        return f"{self.sha256} {hashlib.sha256(split).hexdigest()}"

    def chunks(self, size: int) -> Iterator[Chunk]:
        """All images, upright, cropped to their central square and resized.

        Raises:
            DataError: images cannot be read; names them, after a look at every one.
        """
        sha256, faults = self.sha256, list[str]()
        rows = max(1, CHUNK_BYTES // (3 * size * size))
        for training in (True, False):
            items = [item for item in self.items if item.training == training]
            for first in range(0, len(items), rows):
                part = items[first : first + rows]
                pixels = self._read(part, size, faults)
                labels = np.array([item.label for item in part], np.int64)
                if not faults:
                    yield Chunk(pixels, labels, training)
        if faults:
            raise self._unreadable(faults)
        if self._digest() != sha256:
            raise DataError(f"{self.root}: the images changed while they were read")

    def _read(self, items: Sequence[Item], size: int, faults: list[str]) -> Pixels:
        """Images (n, size, size, 3); what is wrong with the others is added to `faults`."""
        pixels = np.zeros((len(items), size, size, 3), np.uint8)
        for index, item in enumerate(items):
            try:
                pixels[index] = read_picture(item.path, size)
            except PictureError as error:
                faults.append(f"{self._name(item)} ({error})")
        return pixels

    def _unreadable(self, faults: Sequence[str]) -> DataError:
        rest, fine = len(faults) - MOST_NAMED, len(self.items) - len(faults)
        named = ", ".join(faults[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
        return DataError(
            f"{self.root}: {len(faults)} of {len(self.items):,} images cannot be read: {named}; "
            f"the other {fine:,} are fine",
            hint="repair or remove them",
        )

    def _digest(self) -> str:
        hasher = hashlib.sha256()
        for item in self._by_name():
            with _reading(item.path), item.path.open("rb") as file:
                contents = hashlib.file_digest(file, "sha256").digest()
            hasher.update(self._name(item).encode("utf-8", "surrogateescape") + b"\0" + contents)
        return hasher.hexdigest()

    def _by_name(self) -> list[Item]:
        """The images in an order that does not depend on the split."""
        return sorted(self.items, key=self._name)

    def _name(self, item: Item) -> str:
        return item.path.relative_to(self.root).as_posix()


def open_folder(root: Path, *, val_fraction: float, seed: int) -> Folder:
    """Look at a folder's names; reads no image yet.

    Args:
        root: holds `train` and `val`, `valid` or `test`, with class folders; or the class folders.
        val_fraction: share of every class for validation where there is no such split.
        seed: chooses these images.

    Raises:
        DataError: the folder is not laid out like this.
    """
    with _reading(root):
        classes, items = read_layout(root, val_fraction=val_fraction, seed=seed)
    return Folder(root, classes, items)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror or error}",
            hint="check path in [dataset] and its permissions",
        ) from error
