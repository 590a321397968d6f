"""Ctrl-C, SIGTERM and SIGHUP: the first ends training after the step, a second one at once.

The process may be the command line's own, or a Python program, whose handlers are respected.
"""

import os
import select
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType

Handling = Callable[..., AbstractContextManager[list[signal.Signals]]]
"""`handled` or `ctrl_c`."""
ENDING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
"""Signals that end training; SIGHUP, which Windows lacks, comes when the terminal is closed."""
SHOW_CURSOR = b"\x1b[?25h"
"""What shows a terminal's cursor."""


@contextmanager
def handled(stop: Callable[[], None], *, under_torchrun: bool) -> Iterator[list[signal.Signals]]:
    """Call `stop` at the first signal of `ENDING`, and end the process at the second.

    Args:
        stop: ends training after the current step.
        under_torchrun: torchrun sends the first signal twice, so a second one is ignored.

    Yields:
        The signals received so far, at most one.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        if not under_torchrun:
            end_at_once(signum, b"\nstopped at once, without saving; checkpoints are intact\n")

    with handling(ENDING, stop, second=end) as received:
        yield received


@contextmanager
def ctrl_c(stop: Callable[[], None], *, under_torchrun: bool) -> Iterator[list[signal.Signals]]:
    """Call `stop` at the first Ctrl-C, and raise KeyboardInterrupt at the second, in a program.

    Nothing is changed outside the main thread, where Python allows no handlers, and where the
    program has a handler of its own. Other signals are the program's.

    Args:
        stop: ends training after the current step.
        under_torchrun: torchrun sends the first signal twice, so a second one is ignored.

    Yields:
        The signals received so far, at most one.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if not under_torchrun:
            signal.default_int_handler(signum, frame)

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) != signal.default_int_handler:
        yield []
        return
    with handling([signal.SIGINT], stop, second=interrupt) as received:
        yield received


@contextmanager
def handling(
    signums: Iterable[signal.Signals],
    first: Callable[[], object],
    *,
    second: Callable[[int, FrameType | None], None],
) -> Iterator[list[signal.Signals]]:
    """Call `first` at the first of these signals, `second` at each later one.

    After SIGHUP the terminal is gone, and what comes from it is dropped. Signals that this process
    ignores, as SIGHUP under nohup, stay ignored.

    Yields:
        The signals received so far, at most one.
    """
    received: list[signal.Signals] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        if not received:
            received.append(signal.Signals(signum))
            first()
        elif received[0].name != "SIGHUP" or signum == signal.SIGTERM:
            second(signum, frame)

    handled = [signum for signum in signums if signal.getsignal(signum) is not signal.SIG_IGN]
    previous = {signum: signal.signal(signum, handle) for signum in handled}
    try:
        yield received
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def end_at_once(signum: int, words: bytes = b"") -> None:
    """End the process for a second signal, but for SIGHUP, which a closed terminal may send twice.

    The words are said if stderr takes them at once; a full pipe may wait for ever.
    """
    if signum not in (signal.SIGINT, signal.SIGTERM):
        return
    with suppress(OSError, ValueError):  # the terminal may be closed
        cursor = SHOW_CURSOR if os.isatty(2) else b""  # a live display may have hidden it
        if select.select([], [2], [], 0)[1]:
            os.write(2, cursor + words)
    os._exit(128 + signum)
