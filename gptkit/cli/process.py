"""The process around a command: its streams, its signals, its exit code.

Imports little, so that Ctrl-C ends in a word from the first moment on.
"""

import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import NoReturn

from gptkit.cli import streams
from gptkit.errors import GptkitError
from gptkit.runs import signals
from gptkit.terminal import say
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


def _interrupted() -> AbstractContextManager[list[signal.Signals]]:
    """Raise KeyboardInterrupt at the first signal and end the process at the second.

    Training handles them otherwise, to save first. torchrun's processes handle Ctrl-C alone: one
    that waits for another in a call that never returns must end at once.

    Returns:
        A context with the signals received so far, at most one.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        signals.end_at_once(signum)

    signums = [signal.SIGINT] if torchrun.job() else signals.ENDING
    return signals.handling(signums, _interrupt, second=end)


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt
