"""A user's own folder of images."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gptkit.plugin import DataError, digest, progress
from gptkit_cifar10.image_source import Chunk
from gptkit_cifar10.layout import Item, listing, read_layout
from gptkit_cifar10.picture import PictureError, Pixels, read_picture

CHUNK_BYTES = 1 << 23  # of pixels in a chunk
MOST_IMAGES = 256  # in a chunk, so that progress is shown a few times per second
MOST_NAMED = 5  # unreadable images in an error


@dataclass(frozen=True)
class Folder:
    """Images in torchvision's ImageFolder layout as an `ImageSource`; made by `open_folder`."""

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
            DataError: images cannot be read; every image is tried before this is raised.
        """
        sha256, faults = self.sha256, list[str]()
        rows = min(MOST_IMAGES, max(1, CHUNK_BYTES // (3 * size * size)))
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
            raise DataError(
                f"{self.root}: the images changed while they were read", hint="try again"
            )

    def _read(self, items: Sequence[Item], size: int, faults: list[str]) -> Pixels:
        """Images (n, size, size, 3); those that cannot be read are black and added to `faults`."""
        pixels = np.zeros((len(items), size, size, 3), np.uint8)
        for index, item in enumerate(items):
            try:
                pixels[index] = read_picture(item.path, size)
            except PictureError as error:
                faults.append(f"{self._name(item)} ({error})")
        return pixels

    def _unreadable(self, faults: Sequence[str]) -> DataError:
        return DataError(
            f"{self.root}: {len(faults)} of {len(self.items):,} images cannot be read: "
            f"{listing(faults, most=MOST_NAMED)}; "
            f"the other {len(self.items) - len(faults):,} are fine",
            hint="repair or remove them",
        )

    def _digest(self) -> str:
        hasher = hashlib.sha256()
        with progress("checking images", total=len(self.items), unit="images") as advance:
            for item in self._by_name():
                with _reading(item.path):
                    contents = bytes.fromhex(digest(item.path))
                name = self._name(item).encode("utf-8", "surrogateescape")
                hasher.update(name + b"\0" + contents)
                advance(1)
        return hasher.hexdigest()

    def _by_name(self) -> list[Item]:
        """The images sorted by name, which does not depend on the split."""
        return sorted(self.items, key=self._name)

    def _name(self, item: Item) -> str:
        return item.path.relative_to(self.root).as_posix()


def open_folder(root: Path, *, val_fraction: float, seed: int) -> Folder:
    """List the images of a folder without reading them.

    Args:
        root: has the folders `train` and `val`, `valid` or `test`, with class folders in them; or
            the class folders.
        val_fraction: share of every class for validation, if the folder has no split.
        seed: chooses the validation images.

    Raises:
        DataError: the folder has another layout.
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
