"""Progress of something long, on stderr: a bar on a terminal, a plain line at times in a pipe."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from time import perf_counter
from typing import Protocol

from gptkit.terminal import harmless, say

DELAY = 0.5
"""Seconds before a bar appears: what is done sooner needs none."""
EVERY = 10.0
"""Seconds between two lines in a pipe."""
_SILENT: ContextVar[bool] = ContextVar("_SILENT", default=False)


class Advance(Protocol):
    """Says that more is done."""

    def __call__(self, count: int, detail: str = "") -> None:
        """Count what is done; `detail` is shown behind it, e.g. "1,200 documents"."""


@contextmanager
def progress(what: str, *, total: int | None = None, unit: str = "B") -> Iterator[Advance]:
    """Show on stderr how far something long has come; nothing if it is done at once.

    with progress("reading my.txt", total=size) as advance:
        for chunk in chunks:
            advance(len(chunk))

    On a terminal a bar appears after half a second and vanishes at the end. In a pipe there is a
    plain line every ten seconds. Of bytes it shows the speed, too.

    Args:
        what: what is being done, such as "encoding my.txt".
        total: how much there is to do; None if that is not known.
        unit: what is counted, such as "images"; "B" for bytes.
    """
    if _SILENT.get() or sys.stderr is None:  # a program without a console
        yield lambda count, detail="": None
        return
    with ExitStack() as stack:
        show = (_bar if sys.stderr.isatty() else _lines)(stack, what, total)
        done, begin = 0, perf_counter()

        def advance(count: int, detail: str = "") -> None:
            nonlocal done
            done += count
            speed = _speed(done, perf_counter() - begin) if unit == "B" else ""
            parts = (amount(done, total, unit), speed, harmless(detail, keep=""))
            show(done, ", ".join(filter(None, parts)))

        yield advance


@contextmanager
def silent(wanted: bool) -> Iterator[None]:
    """Let `progress` and `note` show nothing in this context, if that is wanted."""
    token = _SILENT.set(wanted)
    try:
        yield
    finally:
        _SILENT.reset(token)


def note(line: str) -> None:
    """Say a line on stderr, unless `progress` is silent."""
    if not _SILENT.get():
        say(f"note: {line}")


class _Show(Protocol):
    def __call__(self, done: int, text: str) -> None: ...


def _bar(stack: ExitStack, what: str, total: int | None) -> _Show:
    """Opens a live bar in `stack` as soon as it is worth it; returns what moves it."""
    begin, move = perf_counter(), None

    def show(done: int, text: str) -> None:
        nonlocal move
        if move is None and perf_counter() - begin > DELAY:
            move = _open_bar(stack, harmless(what, keep=""), total)
        if move:
            move(done, text)

    return show


def _open_bar(stack: ExitStack, what: str, total: int | None) -> _Show:
    from rich.console import Console  # imported here, so that only something long pays for it
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeRemainingColumn(compact=True),
    )
    console = Console(stderr=True, force_jupyter=False)
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
    task = stack.enter_context(bar).add_task(what, total=total, amount="")
    return lambda done, text: bar.update(task, completed=done, amount=text)


def _lines(stack: ExitStack, what: str, total: int | None) -> _Show:
    latest = begin = perf_counter()

    def show(done: int, text: str) -> None:
        nonlocal latest
        if (now := perf_counter()) - latest >= EVERY:
            latest = now
            seconds = round((now - begin) * (total - done) / done) if total and done else None
            eta = f", eta {seconds // 60}:{seconds % 60:02}" if seconds is not None else ""
            say(f"{what}: {text}{eta}")

    return show


def amount(done: int, total: int | None, unit: str) -> str:
    """`1.5 of 4.0 MB (37 %)`, or `1,500 images` if the total is not known."""
    share = f" ({done * 100 // total} %)" if total else ""
    scale = 1
    if unit == "B":
        scale, unit = (10**6, "MB") if (total or done) >= 10**6 else (10**3, "kB")
    form = "{:,.1f}" if scale > 1 else "{:,.0f}"
    parts = [form.format(number / scale) for number in (done, total) if number is not None]
    return f"{' of '.join(parts)} {unit}{share}"


def _speed(done: int, seconds: float) -> str:
    return f"{done / seconds / 10**6:,.1f} MB/s" if done and seconds >= DELAY else ""
