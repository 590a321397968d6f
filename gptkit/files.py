"""Files on disk: written whole or not at all, and their digests."""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

CHUNK = 1 << 20  # bytes read at a time


def digest(path: Path, size: int | None = None) -> str:
    """The sha256 of a file in hex.

    Args:
        path: the file, read in chunks.
        size: how many bytes to read from its beginning; None for all of them.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if size is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        hasher = hashlib.sha256()
        while size > 0 and (chunk := file.read(min(CHUNK, size))):
            hasher.update(chunk)
            size -= len(chunk)
    return hasher.hexdigest()


def write_atomically(path: Path, contents: bytes) -> None:
    """Write a file that is complete, or as it was before, whenever the process or the power stops.

    A symbolic link stays; the file that it points to is replaced.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    target = path.resolve()
    # A name of its own for each writer. Not mkstemp: that makes files that only the user can read.
    unique = tempfile.mktemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    temporary = Path(unique)
    try:
        with temporary.open("xb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
