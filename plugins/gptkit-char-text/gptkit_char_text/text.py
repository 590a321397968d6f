"""Text files as one stream of characters, read in chunks: memory does not grow with the text."""

import codecs
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from gptkit.plugin import DataError, find_files, open_file, progress

CHUNK = 1 << 20  # bytes read at a time
CODE_POINTS = 0x110000


@dataclass(frozen=True)
class TextStats:
    """What `scan` finds out about a text."""

    sha256: str
    """Digest of the text in UTF-8."""
    vocabulary: str
    """Its different characters, sorted by code point."""
    characters: int
    """Its length in characters."""

    @property
    def dtype(self) -> str:
        """The smallest type that holds every index into the vocabulary."""
        return "uint8" if len(self.vocabulary) <= 1 << 8 else "uint16"


def text_files(path: Path) -> list[Path]:
    """The file itself, or the .txt files that `find_files` finds in a folder.

    Raises:
        DataError: `path` does not exist, is neither a file nor a folder, has no text files in it,
            or cannot be read.
    """
    with _reading(path):
        if not path.is_dir():
            open_file(path).close()
            return [path]
    files = find_files(path, endings=(".txt",))
    if not files:
        raise DataError(
            f"{path}: no file in this folder ends in .txt",
            hint="rename the text files, or set path to one file",
        )
    return files


def text_digest(files: Sequence[Path]) -> str:
    """The sha256 that `scan` gives, without decoding the text.

    Raises:
        DataError: a file cannot be read.
    """
    hasher = hashlib.sha256()
    with _showing("checking", files) as advance:
        for index, path in enumerate(files):
            hasher.update(b"\n" if index else b"")
            with _reading(path), _opened(path) as file:
                while chunk := file.read(CHUNK):
                    hasher.update(chunk)
                    advance(len(chunk))
    return hasher.hexdigest()


def scan(files: Sequence[Path]) -> TextStats:
    """Read the text once for its digest, its different characters and its length.

    Raises:
        DataError: a file cannot be read or is not UTF-8.
    """
    hasher, seen, characters = hashlib.sha256(), np.zeros(CODE_POINTS, bool), 0
    for chunk in chunks(files, doing="reading"):
        hasher.update(chunk.encode())
        seen[code_points(chunk)] = True
        characters += len(chunk)
    return TextStats(hasher.hexdigest(), "".join(map(chr, np.flatnonzero(seen))), characters)


def code_points(text: str) -> NDArray[np.uint32]:
    """The code point of every character."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def chunks(files: Sequence[Path], *, doing: str) -> Iterator[str]:
    """The files' text in chunks, with a newline between two files.

    Args:
        files: what to read.
        doing: what the text is read for, shown while it takes long.

    Raises:
        DataError: a file cannot be read or is not UTF-8.
    """
    with _showing(doing, files) as advance:
        for index, path in enumerate(files):
            if index:
                yield "\n"
            with _reading(path), _opened(path) as file:
                yield from _decode(file, path, advance)


def _showing(doing: str, files: Sequence[Path]) -> AbstractContextManager[Callable[[int], None]]:
    place = Path(os.path.commonpath(files))
    with _reading(place):
        size = sum(path.stat().st_size for path in files)
    return progress(f"{doing} {place.name}", total=size)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file and skip a byte order mark at its beginning."""
    with open_file(path) as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        yield file


def _decode(file: BinaryIO, path: Path, advance: Callable[[int], None]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while chunk := file.read(CHUNK):
            yield decoder.decode(chunk)
            advance(len(chunk))
        decoder.decode(b"", final=True)  # raises if the last character is incomplete
    except UnicodeDecodeError as error:
        offset = file.tell() - len(error.object) + error.start  # object ends at tell()
        utf16 = offset == 0 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        raise DataError(
            f"{path}: not UTF-8: bad byte 0x{error.object[error.start]:02x} at offset {offset}",
            hint=f"save the text as UTF-8{'; it seems to be UTF-16' if utf16 else ''}",
        ) from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{path}: no such file or folder", hint="check path in [dataset]"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}",
            hint="path should be a text file, or a folder of them, that you may read",
        ) from error
