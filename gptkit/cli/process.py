"""The process around a command: its streams, its signals, its exit code.

Imports little, so that Ctrl-C ends in a word from the first moment on.
"""

import signal
import sys
import threading
from _thread import interrupt_main
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from gptkit.cli import streams
from gptkit.errors import GptkitError
from gptkit.runs import signals
from gptkit.terminal import say
from gptkit.training import torchrun

AGAIN = 0.1
"""Seconds until a signal that was dropped comes again."""


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
    received: Sequence[int],
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
def _interrupted() -> Iterator[list[signal.Signals]]:
    """Raise KeyboardInterrupt at the first signal and end the process at the second.

    Training handles them otherwise, to save first. torchrun's processes handle Ctrl-C alone: one
    that waits for another in a call that never returns must end at once.

    Yields:
        The signals received so far, at most one.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        signals.end_at_once(signum)

    signums = [signal.SIGINT] if torchrun.job() else signals.ENDING
    with signals.handling(signums, _interrupt, second=end) as received, _not_lost(received):
        yield received


@contextmanager
def _not_lost(received: list[signal.Signals]) -> Iterator[None]:
    """Let a signal come again soon where Python drops its KeyboardInterrupt, as in a destructor."""
    before, waiting = sys.unraisablehook, list[threading.Timer]()

    def dropped(unraisable: Any) -> None:
        if unraisable.exc_type is not KeyboardInterrupt or not received:
            before(unraisable)
            return
        while received:
            waiting.append(threading.Timer(AGAIN, _send, [received.pop()]))
            with suppress(KeyboardInterrupt):  # it came again before this ended
                waiting[-1].start()

    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in waiting:
            timer.cancel()


def _send(signum: signal.Signals) -> None:
    """Send a signal to the main thread, also while it waits for the system."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signum)
    else:  # on Windows
        interrupt_main(signum)


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt
