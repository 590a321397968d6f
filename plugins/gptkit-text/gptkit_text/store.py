"""The encoded remote shards on this disk: within a limit, the least recently used ones go first."""

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from gptkit.plugin import cache_errors, cache_folder, read_file, write_atomically
from gptkit_text.alone import alone

MOST_NOTE = 1 << 16  # bytes of what is known of a shard


class Known(BaseModel):
    """What is known of a shard since it was first read; this is never deleted."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    address: str
    text_key: str
    source: str
    """Digest of its documents' file."""
    size: NonNegativeInt
    """Bytes of that file."""


class Store:
    """Encoded shards of all trainings; one process at a time adds some.

    Args:
        limit: the most bytes that they take, together with the file that is being fetched.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.root = cache_folder("text") / "remote"
        self.encoded = self.root / "encoded"
        """A folder for each encoded shard."""
        self.incoming = self.root / "incoming"
        """The file that is being fetched or encoded."""
        self.known = self.root / "known"

    @contextmanager
    def filling(self) -> Iterator[None]:
        """The right to add shards; waits for another process that has it.

        Raises:
            DataError: the folders cannot be written.
        """
        with cache_errors(self.root):
            for folder in (self.encoded, self.known):
                folder.mkdir(parents=True, exist_ok=True)
            with alone(self.root / ".lock", "fetches or encodes a shard"):
                try:
                    self._sweep()
                    self.incoming.mkdir()
                    yield
                finally:
                    shutil.rmtree(self.incoming, ignore_errors=True)

    def make_room(self, need: int, *, keep: Collection[Path] = (), least: int | None = None) -> int:
        """Delete the least recently used shards until there is room; to be called while `filling`.

        Nothing is deleted if even so there would be less room than `least`.

        Args:
            need: bytes that will be written.
            keep: folders of shards that stay.
            least: bytes that will be written in any case, if `need` is a guess.

        Returns:
            How many bytes of room are missing even so.
        """
        sizes = {folder: size_of(folder) for folder in self._shards()}
        spare = self.limit - sum(sizes.values()) - size_of(self.incoming)
        most = spare + sum(size for folder, size in sizes.items() if folder not in keep)
        if max(most, 0) < (need if least is None else least):
            return need - most
        for folder in sorted(sizes, key=_last_use):
            if spare >= need:
                break
            if folder not in keep and _remove(folder):
                spare += sizes[folder]
        return max(0, need - spare)

    def use(self, folder: Path) -> None:
        """Note that a shard is in use."""
        with suppress(OSError):  # another user's, or it was deleted just now
            os.utime(folder)

    def read_known(self, address: str, text_key: str) -> Known | None:
        """What is known of a shard; None if it was never read, or if that was damaged."""
        try:
            contents = read_file(self.known_file(address, text_key), limit=MOST_NOTE)
            return Known.model_validate_json(contents)
        except (OSError, ValidationError):
            return None

    def write_known(self, known: Known) -> None:
        """Keep what is known of a shard."""
        contents = known.model_dump_json().encode()
        write_atomically(self.known_file(known.address, known.text_key), contents)

    def known_file(self, address: str, text_key: str) -> Path:
        """Where it is kept what is known of a shard."""
        name = hashlib.sha256(f"{text_key}\n{address}".encode()).hexdigest()
        return self.known / f"{name}.json"

    def _shards(self) -> list[Path]:
        return [folder for folder in self.encoded.iterdir() if not folder.name.startswith(".")]

    def _sweep(self) -> None:
        """Delete what killed processes left; none of them is at it, since this one is."""
        shutil.rmtree(self.incoming, ignore_errors=True)
        for left in self.encoded.glob(".*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def size_of(folder: Path) -> int:
    """The bytes of all files in a folder."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # it was deleted just now
                size += Path(place, name).lstat().st_size
    return size


def _last_use(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _remove(folder: Path) -> bool:
    """Delete a shard as a whole; False if another process holds it open, as Windows knows it."""
    gone = folder.with_name(f".{folder.name}.gone")
    try:
        folder.rename(gone)
    except OSError:
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True
