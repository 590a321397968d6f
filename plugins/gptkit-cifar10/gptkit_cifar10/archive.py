"""CIFAR-10's binary archive: 50,000 and 10,000 images of 32 by 32 pixels in ten classes.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009. Nothing is extracted to
disk: the members are read by their exact names, so no name in the archive is used as a path.
"""

import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from gptkit.plugin import DataError, digest, fetch
from gptkit_cifar10.image_source import Chunk
from gptkit_cifar10.picture import Pixels, fit

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
BYTES = 170_052_171

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"{FOLDER}/data_batch_{number}.bin" for number in range(1, 6))
TEST = f"{FOLDER}/test_batch.bin"

SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE  # the label, then all of red, all of green, all of blue
CHUNK = 1000  # records read at a time


@dataclass(frozen=True)
class Archive:
    """The archive as an `ImageSource`.

    Args:
        path: the file; None for the official one, which is downloaded when its images are needed.
    """

    path: Path | None = None

    @property
    def sha256(self) -> str:
        """Digest of the file."""
        if not self.path:
            return SHA256
        with _reading(self.path):
            return digest(self.path)

    @property
    def key(self) -> str:
        """The digest alone, since the split is fixed."""
        return self.sha256

    @property
    def classes(self) -> tuple[str, ...]:
        """The official names."""
        return CLASSES

    def chunks(self, size: int) -> Iterator[Chunk]:
        """The five training batches in order, then the test batch.

        Raises:
            DataError: the archive is damaged, or is not that of CIFAR-10.
            DownloadError: it cannot be downloaded.
        """
        path = self.path or fetch(
            URL, sha256=SHA256, size=BYTES, hint="or set path = FOLDER in [dataset]"
        )
        with _reading(path), tarfile.open(path, "r:gz") as archive:
            members = _members(archive, path)
            for name in (*TRAIN, TEST):
                for records in _records(archive, members[name], path):
                    pixels = _resize(_pixels(records), size)
                    yield Chunk(pixels, records[:, 0].astype(np.int64), training=name != TEST)


def _members(archive: tarfile.TarFile, path: Path) -> dict[str, tarfile.TarInfo]:
    """All members by name; checks each of them, and the six batches."""
    members = {}
    for member in archive:
        place = PurePosixPath(member.name)
        if place.is_absolute() or ".." in place.parts or not (member.isreg() or member.isdir()):
            raise _fault(path, f"unexpected member {member.name!r}")
        members[member.name] = member
    for name in (*TRAIN, TEST):
        if name not in members:
            raise _fault(path, f"{name} is missing")
        if not members[name].size or members[name].size % RECORD:
            raise _fault(path, f"{name} is not made of records of {RECORD:,} bytes")
    return members


def _records(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> Iterator[Pixels]:
    """A batch's records in chunks (n, RECORD)."""
    file = archive.extractfile(member)
    assert file
    for first in range(0, member.size, CHUNK * RECORD):
        wanted = min(CHUNK * RECORD, member.size - first)
        contents = file.read(wanted)
        if len(contents) < wanted:
            raise _fault(path, f"{member.name} ends too early")
        records = np.frombuffer(contents, np.uint8).reshape(-1, RECORD)
        if (worst := records[:, 0].max()) >= len(CLASSES):
            raise _fault(path, f"{member.name} has the label {worst}; the largest is 9")
        yield records


def _pixels(records: Pixels) -> Pixels:
    return records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)


def _resize(pixels: Pixels, size: int) -> Pixels:
    if size == SIDE:
        return pixels
    return np.stack([fit(Image.fromarray(picture), size) for picture in pixels])


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise _fault(path, str(error) or type(error).__name__) from error
    except OSError as error:
        raise _fault(path, error.strerror or str(error)) from error


def _fault(path: Path, fault: str) -> DataError:
    return DataError(
        f"{path}: not the binary archive of CIFAR-10, or damaged: {fault}",
        hint="remove this file to download it again, or set path = FOLDER in [dataset]",
    )
