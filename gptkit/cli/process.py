"""The process around a command: its streams, its signals, its exit code.

Imports little, so that Ctrl-C ends in a word from the first moment on.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from gptkit.cli import streams
from gptkit.errors import GptkitError
from gptkit.runs.signals import ENDING
from gptkit.terminal import say, show_cursor
from gptkit.training import torchrun


def run(command: Callable[[], object]) -> NoReturn:
    """Run a command and end the process with its exit code.

    A reader of stdout that leaves ends it quietly; stdout that is full is an error of one line. A
    signal ends it in a word, after temporary files are removed. Any other exception is a bug and
    keeps its traceback.
    """
    with streams.opened() as stdout, _interrupted() as received:
        code = _exit_code(command, stdout, received)
    if torchrun.job():
        from gptkit.training import distributed

        distributed.leave(code)
    sys.exit(code)


def print_error(error: GptkitError) -> None:
    """Print an error, who raised it and its hint to stderr."""
    for text in str(error).splitlines():
        say(f"error: {text}")
    for text in getattr(error, "__notes__", ()):  # the plugin, the event and the step
        say(f"note:  {text}")
    for text in (error.hint or "").splitlines():
        say(f"hint:  {text}")


def _exit_code(
    command: Callable[[], object],
    stdout: streams.Descriptor | None,
    received: list[int],
) -> int:
    code = 0
    try:
        try:
            command()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        sys.stdout.flush()
    except BaseException as error:
        if not (received or (stdout and error is stdout.fault)):
            raise
        code = 1
    if code and received:
        say("\nstopped" if sys.stderr.isatty() else "stopped")  # a terminal shows ^C before it
        return 128 + received[0]
    if code in (0, 1) and stdout and stdout.fault and not stdout.reader_left:
        print_error(stdout.error())
        return 1
    return code


@contextmanager
def _interrupted() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at the first signal and end the process at the second.

    Training handles them otherwise, to save first. A closed terminal may send SIGHUP twice, so
    SIGHUP is never the second. Signals that this process ignores, as SIGHUP under nohup, stay
    ignored. torchrun's processes handle Ctrl-C alone: one that waits for another in a call that
    never returns must end at once.

    Yields:
        The signals received so far, at most one.
    """
    received: list[int] = []

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if not received:
            received.append(signum)
            raise KeyboardInterrupt
        if signum in (signal.SIGINT, signal.SIGTERM):
            show_cursor()
            os._exit(128 + received[0])

    signums = [signal.SIGINT] if torchrun.job() else ENDING
    handled = [each for each in signums if signal.getsignal(each) is not signal.SIG_IGN]
    previous = {each: signal.signal(each, interrupt) for each in handled}
    try:
        yield received
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
