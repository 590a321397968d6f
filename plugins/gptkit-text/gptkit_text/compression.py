"""Compressed files as streams of bytes: whole, or a DataError; in bounded memory."""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gptkit.plugin import DataError, open_file
from gptkit_text.files import CHUNK, Compression

FEED = 1 << 10  # compressed bytes at a time, of which 1 KB may become 32 MB
BLOCK = 1 << 20  # decompressed bytes at a time, where that can be set
LARGEST_WINDOW = 1 << 31  # bytes: what `zstd --long=31` needs


@contextmanager
def opened(
    path: Path, compression: Compression | None, advance: Callable[[int], None]
) -> Iterator[BinaryIO]:
    """Open a file as a stream of its decompressed bytes.

    All members of a .gz file, all frames of a .zst file and all streams of a .bz2 or .xz file are
    read, one after another.

    Args:
        path: the file.
        compression: how it is compressed, if it is.
        advance: told how many bytes of the file were read.

    Raises:
        OSError: the file cannot be read.
        DataError: also from the stream: the file is truncated or damaged, or zstandard is missing.
    """
    with open_file(path) as file:
        stream: io.RawIOBase = _Counted(file, advance)
        if compression:
            buffered = io.BufferedReader(stream, CHUNK)
            stream = _Decompressed(_blocks(buffered, path, _kind(compression, path)))
        with io.BufferedReader(stream, CHUNK) as decompressed:
            yield decompressed


def missing(path: Path, package: str, extra: str) -> DataError:
    """The error for a file that needs a package which is not installed."""
    return DataError(
        f"{path}: needs the package {package}, which is not installed",
        hint=f'pip install "gptkit-text[{extra}]"',
    )


class _Kind(NamedTuple):
    """How one kind of compression is undone."""

    new: Callable[[], Any]
    """Makes what decompresses one member, frame or stream."""
    fault: type[Exception]
    """What that raises for damaged data."""


class _Counted(io.RawIOBase):
    """A file that tells how much of it was read."""

    def __init__(self, file: io.BufferedReader, advance: Callable[[int], None]) -> None:
        self._file, self._advance = file, advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._advance(count)
        return count


class _Decompressed(io.RawIOBase):
    """Blocks of bytes as a stream."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._left = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._left = memoryview(block)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def _blocks(file: BinaryIO, path: Path, kind: _Kind) -> Iterator[bytes]:
    """The decompressed bytes of all members."""
    decoder, at_end = kind.new(), False
    data = file.read(FEED)
    while data:
        if at_end:  # of a member; zeros may fill the space before the next one
            if not (data := data.lstrip(b"\0")):
                data = file.read(FEED)
                continue
            decoder = kind.new()
        try:
            yield from _unpacked(decoder, data)
        except kind.fault as error:
            raise DataError(
                f"{path}: damaged: cannot be decompressed as {path.suffix}: {error}",
                hint="fetch or compress the file again",
            ) from error
        at_end = decoder.eof
        data = decoder.unused_data or file.read(FEED)
    if not at_end:
        raise DataError(
            f"{path}: truncated: the file ends before its data does",
            hint="fetch or compress the file again",
        )


def _unpacked(decoder: Any, data: bytes) -> Iterator[bytes]:
    if not isinstance(decoder, bz2.BZ2Decompressor | lzma.LZMADecompressor):
        yield decoder.decompress(data)
        return
    yield decoder.decompress(data, BLOCK)
    while not (decoder.eof or decoder.needs_input):
        yield decoder.decompress(b"", BLOCK)


def _kind(compression: Compression, path: Path) -> _Kind:
    match compression:
        case "gz":
            return _Kind(lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS), zlib.error)
        case "bz2":
            return _Kind(bz2.BZ2Decompressor, OSError)
        case "xz":
            return _Kind(lzma.LZMADecompressor, lzma.LZMAError)
        case "zst":
            return _zstandard(path)


def _zstandard(path: Path) -> _Kind:
    try:
        import zstandard
    except ImportError as error:
        raise missing(path, "zstandard", "zst") from error
    decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
    return _Kind(decompressor.decompressobj, zstandard.ZstdError)
