"""A chat at a terminal, or through pipes: reading messages, showing answers. Imports no torch."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import gptkit

PROMPT = "> "
BOLD, PLAIN = "\001\x1b[1m\002", "\001\x1b[0m\002"  # readline counts nothing between \001 and \002
INVITATION = "/help lists the commands; Ctrl-C ends an answer, Ctrl-D the chat"


class Stopped(KeyboardInterrupt):
    """Ctrl-C where a message is typed, or a second one while an answer is drawn."""


class Terminal:
    """Where messages come from and answers go to.

    Args:
        harmless: makes text harmless for a terminal.
    """

    def __init__(self, harmless: Callable[[str], str]) -> None:
        self._harmless = harmless
        self.typed = sys.stdin.isatty()
        """Whether somebody types the messages."""
        self._shown = sys.stdout.isatty()
        self._answering = self.stopped = False
        if self.typed and self._shown:
            with suppress(ImportError):  # on Windows
                import readline  # noqa: F401 (edits lines, and remembers them)

    def messages(self) -> Iterator[str]:
        """The messages, line by line, until the end of the input.

        Raises:
            UsageError: the input is not UTF-8.
        """
        if self.typed:
            self.say(INVITATION)
        while (line := self._typed() if self.typed else self._piped()) is not None:
            yield line

    def show(self, pieces: Iterator[str]) -> None:
        """Show an answer piece by piece; Ctrl-C ends it, if somebody types."""
        self._answering, self.stopped = True, False
        try:
            for piece in pieces:
                sys.stdout.write(self._harmless(piece) if self._shown else piece)
                sys.stdout.flush()
                if self.stopped:
                    break
        finally:
            self._answering = False
            close = getattr(pieces, "close", None)
            if close:
                close()
        sys.stdout.write("\n")
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """Tell something that is no answer, on stderr."""
        sys.stderr.write(f"{self._harmless(text)}\n")
        sys.stderr.flush()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let Ctrl-C end an answer, not the chat, where somebody types."""
        main = threading.current_thread() is threading.main_thread()
        if not self.typed or not main:
            yield
            return
        before = signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if not self._answering or self.stopped:
            raise Stopped
        self.stopped = True

    def _typed(self) -> str | None:
        """A line that somebody types; None at Ctrl-D. Ctrl-C begins the line anew."""
        while True:
            try:
                if self._shown:
                    return input(self._styled())
                sys.stderr.write(PROMPT)
                sys.stderr.flush()
                line = sys.stdin.readline()
                return line.removesuffix("\n") if line else None
            except Stopped:
                sys.stderr.write("\n")
            except EOFError:
                sys.stderr.write("\n")
                return None
            except UnicodeDecodeError as error:
                raise _not_utf8(error) from error

    def _styled(self) -> str:
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in (None, "dumb", "unknown")
        return PROMPT if plain or "readline" not in sys.modules else f"{BOLD}{PROMPT}{PLAIN}"

    def _piped(self) -> str | None:
        source: Any = getattr(sys.stdin, "buffer", sys.stdin)
        line = source.readline()
        if not line:
            return None
        try:
            text: str = line.decode() if isinstance(line, bytes) else line
        except UnicodeDecodeError as error:
            raise _not_utf8(error) from error
        return text.removesuffix("\n").removesuffix("\r")


def _not_utf8(error: UnicodeDecodeError) -> gptkit.UsageError:
    return gptkit.UsageError(f"standard input is not UTF-8: {error}", hint="convert it with iconv")
