"""The standard streams of the command line: their encoding, and what happens when they fail."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gptkit.errors import GptkitError


class Descriptor(io.FileIO):
    """A standard stream that fails once, and then takes everything and keeps nothing.

    What writes to the descriptor itself, such as a library in C, is not disturbed, either.

    Args:
        number: the descriptor; it stays open.
        quiet: raise nothing at all.
    """

    fault: OSError | None = None
    """Why it failed."""

    def __init__(self, number: int, *, quiet: bool) -> None:
        super().__init__(number, "wb", closefd=False)
        self._quiet = quiet

    def write(self, data: Any) -> int:
        """Write to the end, also where another process made the pipe one that does not wait."""
        rest = memoryview(data).cast("B")
        try:
            while rest and self.fault is None:
                if (count := super().write(rest)) is None:
                    self._wait()
                else:
                    rest = rest[count:]
        except OSError as error:
            self.fault = error
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (not worth importing pathlib)
                os.dup2(nowhere.fileno(), self.fileno())
            if not self._quiet:
                raise
        return len(data)

    @property
    def reader_left(self) -> bool:
        """Whether it failed since nobody reads it any more: a pipe's reader, or a terminal."""
        return isinstance(self.fault, BrokenPipeError) or (
            self.fault is not None and self.fault.errno == errno.EIO
        )

    def error(self) -> GptkitError:
        """The error about a full disk, for example."""
        assert self.fault
        return GptkitError(
            f"standard output: cannot be written: {self.fault.strerror}",
            hint="make room on its disk, or send it elsewhere",
        )

    def _wait(self) -> None:
        import select

        select.select([], [self], [])


@contextmanager
def opened() -> Iterator[Descriptor | None]:
    """Make the standard streams what the command line needs.

    A terminal replaces characters that it does not have. Pipes and files are in UTF-8, and paths
    that are not UTF-8 are in them byte for byte. What cannot be written to stderr is dropped. A
    stream that is closed is open to nowhere.

    Yields:
        The descriptor behind stdout; None where a program has replaced stdout.
    """
    _occupy_closed()
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = before[0] or open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stdout, descriptor = _open(before[1], quiet=False)
    sys.stderr, _ = _open(before[2], quiet=True)
    try:
        yield descriptor
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def _open(stream: Any, *, quiet: bool) -> tuple[Any, Descriptor | None]:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8", errors="replace"), None  # noqa: PTH123
    if not isinstance(stream, io.TextIOWrapper):
        return stream, None
    exact = not (quiet or stream.isatty())
    encoding = "utf-8" if exact else stream.encoding
    errors = "surrogateescape" if exact else "backslashreplace" if quiet else "replace"
    try:
        number = stream.fileno()
        stream.flush()
    except OSError:  # in memory
        stream.reconfigure(errors=errors)
        return stream, None
    descriptor = Descriptor(number, quiet=quiet)
    at_once = stream.write_through  # by PYTHONUNBUFFERED
    buffer: Any = descriptor if at_once else io.BufferedWriter(descriptor)
    lines = stream.line_buffering
    text = io.TextIOWrapper(buffer, encoding, errors, line_buffering=lines, write_through=at_once)
    return text, descriptor


def _occupy_closed() -> None:
    """Let nothing else get the descriptor of a closed stream: what is printed would get into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)
