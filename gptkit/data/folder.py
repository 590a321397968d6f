"""The files of a folder: one rule for every plugin that reads a folder of the user's."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from gptkit.data.progress import note, progress
from gptkit.errors import DataError
from gptkit.terminal import harmless

SYSTEM = ("/proc", "/sys")
"""What looks like files there is made up by the system when it is read, and may have no end."""
MOST_NAMED = 5  # endings in a note


def find_files(*folders: Path, endings: Collection[str], in_folders: bool = False) -> list[Path]:
    """The files below folders whose names end in one of `endings`, sorted by their paths.

    - Names that begin with a dot are left out, and so is all that is below such a folder.
    - Links are followed. A file or a folder counts once: where it is itself, rather than where a
      link leads to it; so a link to a folder around it makes no loop.
    - Pipes, sockets, devices and the system's own files in /proc and /sys are left out.

    What was left out is said on stderr, in one line with numbers.

    Args:
        folders: where to look, at any depth.
        endings: in small letters, such as ".txt" or ".txt.gz"; they fit names in any case.
        in_folders: leave out the files that are not in a folder below `folders`.

    Returns:
        The paths, each beginning with one of `folders`.

    Raises:
        DataError: a folder cannot be read, or one of `folders` is in /proc or /sys.
    """
    walk = _Walk(tuple(endings))
    with progress(f"looking through {folders[0].name}", unit="files") as advance:
        walk.run(folders, advance)
    files = sorted(walk.files, key=Path.as_posix)
    if in_folders:
        above = set(folders)
        inside = [file for file in files if file.parent not in above]
        walk.skipped["not in a folder"] = len(files) - len(inside)
        files = inside
    if told := walk.told():
        place = Path(os.path.commonpath(folders))
        note(f"{place}: {told}: skipped")
    return files


class _Walk:
    """One walk: what is really in the folders first, then what the links lead to."""

    def __init__(self, endings: tuple[str, ...]) -> None:
        self.endings = endings
        self.files: list[Path] = []
        self.skipped, self.others = Counter[str](), Counter[str]()
        self._seen = set[Path]()  # real paths of files and folders
        self._links: list[Path] = []

    def run(self, folders: Collection[Path], advance: Callable[[int], None]) -> None:
        for folder in folders:
            if _is_of_system(real := _real(folder)):
                raise DataError(
                    f"{folder}: is made up by the system, and holds no data",
                    hint="set path to a folder of files",
                )
            self._take_folder(folder, real, advance)
        while self._links:
            links, self._links = sorted(self._links, key=Path.as_posix), []
            for link in links:
                self._take(link, _real(link), advance)

    def told(self) -> str:
        """How much of each kind was left out, and with which endings."""
        parts = [f"{count:,} {kind}" for kind, count in self.skipped.items() if count]
        if self.others:
            named = [harmless(ending, keep="") for ending, _ in self.others.most_common(MOST_NAMED)]
            more = ", ..." if len(self.others) > MOST_NAMED else ""
            parts.append(f"{self.others.total():,} with other endings ({', '.join(named)}{more})")
        return ", ".join(parts)

    def _take(self, path: Path, real: Path, advance: Callable[[int], None]) -> None:
        """A file, a folder or something else at `path`, which is `real` without links."""
        try:
            kind = real.stat().st_mode
        except (OSError, ValueError):
            self.skipped["linked to nothing"] += 1
            return
        if _is_of_system(real) or not (stat.S_ISDIR(kind) or stat.S_ISREG(kind)):
            self.skipped["neither file nor folder"] += 1
        elif stat.S_ISDIR(kind):
            self._take_folder(path, real, advance)
        else:
            self._take_file(path, real)

    def _take_folder(self, path: Path, real: Path, advance: Callable[[int], None]) -> None:
        waiting = [(path, real)]
        while waiting:
            folder, real = waiting.pop()
            if real in self._seen:
                self.skipped["linked twice"] += 1
                continue
            self._seen.add(real)
            for entry in _entries(folder):
                advance(1)
                child, real_child = folder / entry.name, real / entry.name
                if entry.name.startswith("."):
                    self.skipped["hidden"] += 1
                elif entry.is_symlink():
                    self._links.append(child)
                elif entry.is_dir():
                    waiting.append((child, real_child))
                else:
                    self._take(child, real_child, advance)

    def _take_file(self, path: Path, real: Path) -> None:
        if not path.name.lower().endswith(self.endings):
            self.others[path.suffix.lower() or "none"] += 1
        elif real in self._seen:
            self.skipped["linked twice"] += 1
        else:
            self._seen.add(real)
            self.files.append(path)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be read: {error.strerror}",
            hint="check the permissions of the folder",
        ) from error


def _real(path: Path) -> Path:
    """The path without links; a link that leads to itself stays."""
    return Path(os.path.realpath(path))


def _is_of_system(real: Path) -> bool:
    return any(real.is_relative_to(place) for place in SYSTEM)
