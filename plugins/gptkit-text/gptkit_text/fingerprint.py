"""The fingerprint of files: what they hold, and whether they are still as they were."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from gptkit.plugin import DataError
from gptkit_text.files import TextFile, common_place, digest_all

State = tuple[int, ...]


@dataclass(frozen=True)
class Fingerprint:
    """What identifies the documents of files."""

    files: Sequence[TextFile]
    states: Sequence[State]
    """Of the files, from before they were read for the digest."""
    sha256: str
    """Digest of the files."""

    @classmethod
    def of(cls, files: Sequence[TextFile]) -> Self:
        """Of the files as they are now.

        Raises:
            DataError: a file cannot be read.
        """
        states = _states(files)
        return cls(files, states, digest_all(files))

    def check(self, *, read: bool = False) -> None:
        """See whether the files are still as they were.

        Args:
            read: also read them: some file systems do not tell every change.

        Raises:
            DataError: one has changed.
        """
        if _states(self.files) != self.states or (read and digest_all(self.files) != self.sha256):
            place = common_place([file.path for file in self.files])
            raise DataError(f"{place}: changed while it was read", hint="try again")


def _states(files: Sequence[TextFile]) -> list[State]:
    """What changes when a file is written; nothing for one that cannot be read."""
    states = list[State]()
    for file in files:
        with suppress(OSError):
            found = file.path.stat()
            states.append((found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino))
    return states
