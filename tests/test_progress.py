import io
import re
from contextlib import redirect_stderr

import pytest

from gptkit.data import progress as module
from gptkit.plugin import progress

ESCAPE = re.compile(r"\x1b\[[\d;?]*[a-zA-Z]")


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still but for what a test says."""
    now = [0.0]
    monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    return now


def run(clock: list[float], *, seconds: float, total: int | None, unit: str = "B") -> None:
    with progress("reading my.txt", total=total, unit=unit) as advance:
        for _ in range(10):
            clock[0] += seconds / 10
            advance(400_000)


def test_a_pipe_gets_a_plain_line_every_ten_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    run(clock, seconds=9, total=4_000_000)
    assert capsys.readouterr() == ("", "")
    run(clock, seconds=40, total=4_000_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "reading my.txt: 1.2 of 4.0 MB (30 %), 0.1 MB/s, eta 0:28",
        "reading my.txt: 2.4 of 4.0 MB (60 %), 0.1 MB/s, eta 0:16",
        "reading my.txt: 3.6 of 4.0 MB (90 %), 0.1 MB/s, eta 0:04",
    ]


def test_a_detail_is_shown_behind_the_amount(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("encoding", total=90_000_000) as advance:
        clock[0] += 10
        advance(30_000_000, "1,200 documents")
    line = "encoding: 30.0 of 90.0 MB (33 %), 3.0 MB/s, 1,200 documents, eta 0:20"
    assert capsys.readouterr().err.splitlines() == [line]


def test_a_program_can_silence_it(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with module.silent(True):
        run(clock, seconds=40, total=4_000_000)
    assert capsys.readouterr() == ("", "")
    with module.silent(False):
        run(clock, seconds=40, total=4_000_000)
    assert capsys.readouterr().err


def test_without_a_total_the_line_says_how_much(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    run(clock, seconds=20, total=None, unit="images")
    assert capsys.readouterr().err.splitlines()[0] == "reading my.txt: 2,000,000 images"


def test_a_terminal_gets_a_bar_only_if_it_takes_long(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with redirect_stderr(Terminal()) as terminal:
        run(clock, seconds=0.4, total=4_000_000)
        assert terminal.getvalue() == ""
        run(clock, seconds=2, total=4_000_000)
    shown = ESCAPE.sub("", terminal.getvalue())
    assert "reading my.txt" in shown
    assert "of 4.0 MB" in shown
    assert terminal.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_a_failure_gives_the_terminal_back(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with redirect_stderr(Terminal()) as terminal, pytest.raises(ZeroDivisionError):
        with progress("reading") as advance:
            clock[0] = 1.0
            advance(1)
            raise ZeroDivisionError
    assert terminal.getvalue().count("\x1b[?25h") == 1
