"""What a path option means: the files of a text, their kinds, and the digest of all of them."""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gptkit.plugin import (
    DataError,
    cache_folder,
    find_files,
    note,
    open_file,
    progress,
    read_json,
    write_atomically,
)

Kind = Literal["text", "jsonl", "json", "csv", "parquet"]
Compression = Literal["gz", "zst", "bz2", "xz"]
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)
KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
ENDINGS = (
    *KINDS,
    *(f"{e}.{c}" for e, kind in KINDS.items() if kind != "parquet" for c in COMPRESSIONS),
)
"""The names of files that a folder is searched for; Parquet is compressed inside."""
CHUNK = 1 << 20  # bytes read at a time
MOST_FILES = 1 << 20  # that braces may stand for
SHOWN = 5  # endings in a note
WORTH_NOTING = 1 << 20  # bytes of a file from which its digest is remembered
SETTLED = 2_000_000_000  # nanoseconds: a file system's clock may be this coarse
RANGE = re.compile(r"\{([0-9]{1,18})\.\.([0-9]{1,18})\}")


@dataclass(frozen=True)
class TextFile:
    """A file that holds documents."""

    path: Path
    kind: Kind
    compression: Compression | None = None
    text_key: str = "text"
    """The key or the column that has the text, in JSONL, JSON, CSV and Parquet."""


def expand(path: str) -> list[str]:
    """A path, or all that `{000..199}` in it stands for, in the order of the numbers.

    As in a shell: where a number begins with a zero, all have the same number of digits.

    Raises:
        DataError: the last number is smaller than the first, or there are too many.
    """
    if (found := RANGE.search(path)) is None:
        return [path]
    first, last = found.groups()
    begin, end, rests = int(first), int(last) + 1, expand(path[found.end() :])
    if not 0 < (end - begin) * len(rests) <= MOST_FILES:
        fault = f"stands for more than {MOST_FILES:,} files" if begin < end else "counts down"
        raise DataError(f"{path}: {found[0]} {fault}", hint="write it as in {000..199}")
    padded = any(len(digits) > 1 and digits[0] == "0" for digits in (first, last))
    width = max(len(first), len(last)) if padded else 0
    before = path[: found.start()]
    return [f"{before}{n:0{width}}{rest}" for n in range(begin, end) for rest in rests]


def find(
    paths: Sequence[str | Path],
    *,
    text_key: str = "text",
    endings: Sequence[str] | None = None,
) -> list[TextFile]:
    """The files that paths name: each a file, or a folder that is searched at any depth.

    A file whose name has no known ending is plain text. A file counts once, wherever it is named
    or linked again.

    Args:
        paths: of files and folders.
        text_key: of all files.
        endings: those that folders are searched for; None for all that are known.

    Raises:
        DataError: a path does not exist, is neither a file nor a folder, cannot be read, or is a
            folder without a file that has a known ending.
    """
    found = [file for path in map(Path, paths) for file in _files(path, endings or ENDINGS)]
    files = dict[str, Path]()
    for file in found:
        files.setdefault(os.path.realpath(file), file)
    if again := len(found) - len(files):
        note(f"{common_place(found)}: {again:,} named twice: skipped")
    _tell_unknown(files.values(), endings or ())
    return [_text_file(path, text_key) for path in files.values()]


def digest_all(files: Sequence[TextFile]) -> str:
    """The sha256 of all that decides which documents the files give; their names do not.

    Raises:
        DataError: a file cannot be read.
    """
    hasher = hashlib.sha256()
    place = common_place([file.path for file in files])
    with progress(f"checking {place.name}", total=total_size(files)) as advance:
        for file in files:
            sha256 = file_digest(file.path, advance)
            fields = [sha256, file.kind, file.compression, file.text_key]
            hasher.update(json.dumps(fields).encode() + b"\n")
    return hasher.hexdigest()


def file_digest(path: Path, advance: Callable[[int], None] = lambda count: None) -> str:
    """The sha256 of a file in hex; that of a large file is remembered while it stays as it is.

    Args:
        path: the file.
        advance: told how many bytes are done.

    Raises:
        DataError: the file cannot be read.
    """
    with reading(path):
        before, now = path.stat(), time.time_ns()
        if before.st_size < WORTH_NOTING:
            return _digest(path, advance)
        place, changed = os.path.realpath(path), [before.st_mtime_ns, before.st_ctime_ns]
        state = {"path": place, "size": before.st_size, "inode": before.st_ino, "changed": changed}
        memory = _memory(place)
        if (sha256 := _remembered(memory, state)) is not None:
            advance(before.st_size)
            return sha256
        sha256 = _digest(path, advance)
        # A file may change again within one tick of its clock, and its state would be the same.
        if max(changed) < now - SETTLED:
            with suppress(OSError):  # the cache cannot be written: read it again next time
                memory.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(memory, json.dumps(state | {"sha256": sha256}).encode())
        return sha256


def total_size(files: Sequence[TextFile]) -> int:
    """The bytes of all files.

    Raises:
        DataError: a file is not there, or not to be read.
    """
    total = 0
    for file in files:
        with reading(file.path):
            total += file.path.stat().st_size
    return total


def common_place(paths: Sequence[Path]) -> Path:
    """The file itself, or the folder around all files, for a message."""
    with suppress(ValueError):  # on different drives
        return Path(os.path.commonpath(paths))
    return paths[0].parent


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError into a DataError that names the path."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{path}: no such file or folder",
            hint="check path in [dataset], or give another: --set dataset.path=...",
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror or error}",
            hint="path should be a file, or a folder of them, that you may read",
        ) from error


def told(endings: Sequence[str]) -> str:
    """Endings as a message names them."""
    if endings is ENDINGS:
        return f"{', '.join(KINDS)} (also with .{', .'.join(COMPRESSIONS)})"
    return ", ".join(endings)


def _files(path: Path, endings: Sequence[str]) -> list[Path]:
    with reading(path):
        if not path.is_dir():
            open_file(path).close()
            return [path]
    files = find_files(path, endings=endings)
    if not files:
        raise DataError(
            f"{path}: no file in this folder ends in one of {told(endings)}",
            hint='name the endings of its files in [dataset], such as endings = [".py"]',
        )
    return files


def _tell_unknown(files: Collection[Path], named: Sequence[str]) -> None:
    """Say which files are taken for plain text, though their endings may mean something else."""
    known = {"", *KINDS, *named}
    unknown = [
        file
        for file in files
        if _ending(file) not in known and not file.name.lower().endswith(tuple(named))
    ]
    if unknown:
        endings = sorted(set(map(_ending, unknown)))
        more = ", ..." if len(endings) > SHOWN else ""
        note(
            f"{common_place(unknown)}: {len(unknown):,} with unknown endings "
            f"({', '.join(endings[:SHOWN])}{more}): read as plain text"
        )


def _ending(file: Path) -> str:
    """What a name ends in, before the ending of a compression."""
    name = file.name.lower()
    return Path(name.removesuffix(f".{_compression(name)}")).suffix


def _compression(name: str) -> Compression | None:
    return next((c for c in COMPRESSIONS if name.endswith(f".{c}")), None)


def _text_file(path: Path, text_key: str) -> TextFile:
    compression = _compression(path.name.lower())
    kind = KINDS.get(_ending(path), "text")
    if kind == "parquet" and compression:
        raise DataError(
            f"{path}: a Parquet file is read only as it is, not compressed again",
            hint=f"decompress it; then its name ends in .parquet, without .{compression}",
        )
    return TextFile(path, kind, compression, text_key)


def _digest(path: Path, advance: Callable[[int], None]) -> str:
    hasher = hashlib.sha256()
    with open_file(path) as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            advance(len(chunk))
    return hasher.hexdigest()


def _memory(real_path: str) -> Path:
    """The file in the cache that remembers a file's digest."""
    name = hashlib.sha256(os.fsencode(real_path)).hexdigest()[:32]
    return cache_folder("text") / "digests" / f"{name}.json"


def _remembered(memory: Path, state: dict[str, Any]) -> str | None:
    """The digest that was noted for a file in this very state."""
    try:
        noted = read_json(memory, limit=CHUNK)
        sha256 = noted.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return sha256 if noted == state and isinstance(sha256, str) else None
