"""What is printed: text made harmless for a terminal, and streams whose reader may leave."""

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

REPLACEMENT = "\ufffd"
LONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Lone surrogates that stand for no byte of a path, so that no file can hold them."""
STEERING = ("Cc", "Cs", "Zl", "Zp")
"""Categories of control characters, lone surrogates and separators of lines."""
OVERRIDES = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Bidirectional classes of characters after which a terminal writes in another direction."""


def harmless(text: str, *, keep: str = "\n\t") -> str:
    r"""Text whose characters cannot steer a terminal: those that could become U+FFFD.

    Every other character stays, among them wide and narrow spaces, and what joins letters or
    emoji. A `\r` before a `\n` is dropped.

    Args:
        text: anything, also lone surrogates.
        keep: control characters that stay; "" for a name, which takes one line.
    """
    lines = text.replace("\r\n", "\n")
    return "".join(REPLACEMENT if c not in keep and _steers(c) else c for c in lines)


def harmless_pieces(pieces: Iterable[str]) -> Iterator[str]:
    r"""The pieces of a text, harmless; also if `\r` and `\n` are in two pieces."""
    held = ""
    for piece in pieces:
        text = held + piece
        held = "\r" if text.endswith("\r") else ""
        yield harmless(text.removesuffix("\r"))
    yield harmless(held)


def say(text: str) -> None:
    """Print a line on stderr, harmless."""
    if sys.stderr:  # a program without a console has none
        sys.stderr.write(harmless(text) + "\n")


def print_result(text: object, *, end: str = "\n") -> None:
    """Print on stdout: harmless on a terminal; in a pipe or a file as it is."""
    whole = f"{text}{end}"
    is_terminal = sys.stdout.isatty()
    sys.stdout.write(harmless(whole) if is_terminal else LONE.sub(REPLACEMENT, whole))


@contextmanager
def lasting() -> Iterator[None]:
    """Drop what cannot be printed, for work that is worth more than its reader.

    A reader that leaves, a terminal that is closed and a full disk then raise no exception.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = ours = _Lasting(sys.stdout), _Lasting(sys.stderr)
    try:
        yield
    finally:
        if (sys.stdout, sys.stderr) == ours:
            sys.stdout, sys.stderr = before


class _Lasting:
    """A stream that drops what it cannot write."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, data: Any) -> int:
        with suppress(AttributeError, OSError, ValueError):  # there is none, or it is closed
            self._stream.write(data)
        return len(data)

    def writelines(self, lines: Iterable[Any]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with suppress(AttributeError, OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        with suppress(AttributeError, ValueError):
            return bool(self._stream.isatty())
        return False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._stream, name)
        return _Lasting(found) if name == "buffer" else found


def _steers(character: str) -> bool:
    steering = unicodedata.category(character) in STEERING
    return steering or unicodedata.bidirectional(character) in OVERRIDES
