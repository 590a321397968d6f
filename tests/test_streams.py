"""What is printed: encodings, names that steer terminals, readers that leave; and signals."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import gptkit
from gptkit.cli import process
from gptkit.cli.app import app
from gptkit.errors import UsageError
from gptkit.plugin import Callback
from gptkit.show.tables import print_columns, print_rows
from gptkit.staging import staged
from gptkit.terminal import harmless_pieces, lasting, print_result, say

OWNED = "\x1b]0;owned\x07\u202e\x9b31m"
"""A title for the terminal, an override of the direction, a colour."""


class Terminal(io.StringIO):
    """A terminal that remembers what was written to it."""

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        """What was written, without bold."""
        return self.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")


def run(command: Callable[[], object]) -> int:
    """The exit code of a command in this process."""
    with pytest.raises(SystemExit) as end:
        process.run(command)
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def broken_pipe() -> Iterator[Callable[[], io.TextIOWrapper]]:
    """Makes a stream whose reader has left."""
    streams = []

    def make() -> io.TextIOWrapper:
        ours, theirs = os.pipe()
        os.close(ours)
        streams.append(io.TextIOWrapper(io.BufferedWriter(io.FileIO(theirs, "w"))))
        return streams[-1]

    yield make
    with Path(os.devnull).open("w") as nowhere:
        for stream in streams:
            os.dup2(nowhere.fileno(), stream.fileno())  # what it still holds must go somewhere
            stream.close()


def test_a_file_gets_every_character_whatever_the_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.toml"
    with path.open("w", encoding="cp1252") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert run(lambda: print_result(f"x日 caf\udce9 {OWNED}")) == 0
    assert path.read_bytes() == b"x\xe6\x97\xa5 caf\xe9 " + OWNED.encode() + b"\n"


def test_a_terminal_gets_nothing_that_steers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    def fail() -> None:
        print_result(OWNED)
        print_rows([{"run": OWNED + "\nx"}], ["run"], as_json=False)
        print_columns([OWNED], [{OWNED: OWNED}], [OWNED])
        say(OWNED)
        error = UsageError(OWNED, hint=OWNED)
        error.add_note(OWNED)
        process.print_error(error)

    assert run(fail) == 0
    for told in (out.text(), err.text()):
        assert told.count("owned") >= 4
        assert not set(told) & set("\x1b\x07\u202e\x9b")


@pytest.mark.parametrize("command", [["--help"], ["runs", "list"], ["plugins", "list"]], ids=str)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is full")
def test_a_full_disk_behind_stdout_is_two_lines(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        assert run(lambda: app(command)) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: standard output: cannot be written: No space left on device"
    assert hint.startswith("hint: ")


def test_a_reader_that_leaves_ends_a_command_quietly(
    broken_pipe: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdout", broken_pipe())
    printed = []

    def print_twice() -> None:
        print_result("a" * 100_000)
        printed.append("never")

    assert run(print_twice) == 1
    assert not printed
    assert capsys.readouterr().err == ""


def test_training_in_a_program_goes_on_without_its_readers(
    broken_pipe: Callable[[], Any],
    tiny_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Talkative(Callback):
        contract = 1

        def on_step_end(self, state: Any) -> None:
            print("a" * 100_000, flush=True)
            sys.stdout.buffer.write(b"a" * 100_000)

    monkeypatch.setattr(sys, "stdout", out := broken_pipe())
    monkeypatch.setattr(sys, "stderr", err := broken_pipe())
    run = gptkit.train(tiny_recipe(), out=tmp_path / "r", callbacks=Talkative())
    assert (sys.stdout, sys.stderr) == (out, err)
    records = (run.path / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(record)["step"] for record in records) == 4


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_command_in_a_word_and_leaves_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signum = getattr(signal, name)
    before = signal.getsignal(signum)

    def write() -> None:
        with staged(tmp_path / "model.onnx") as new:
            new.write_bytes(b"half of it")
            try:
                signal.raise_signal(signum)
            except KeyboardInterrupt:  # as what imports in the middle of it may
                raise ImportError("cannot import name") from None

    assert run(write) == 128 + signum
    assert capsys.readouterr().err == "stopped\n"
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signum) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows wakes no thread for a signal")
def test_a_signal_while_an_object_is_freed_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    class Freed:
        def __del__(self) -> None:  # Python drops what it raises
            signal.raise_signal(signal.SIGTERM)

    def command() -> None:
        Freed()
        time.sleep(20)

    assert run(command) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "stopped\n"


def test_signals_that_are_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    try:
        assert run(lambda: signal.raise_signal(signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("module", ["difflib", "typer"])
def test_ctrl_c_while_gptkit_starts_is_a_word(module: str, tmp_path: Path) -> None:
    """A module that presses Ctrl-C while it is imported."""
    (tmp_path / f"{module}.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    done = subprocess.run(
        [sys.executable, "-m", "gptkit", "--help"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "stopped")


def test_pieces_are_harmless_together() -> None:
    pieces = ["a\r", "\nb\r", "\r", "c\x1b", "", "\r"]
    assert "".join(harmless_pieces(pieces)) == "a\nb\ufffd\ufffdc\ufffd\ufffd"


def test_what_cannot_be_printed_is_dropped_without_a_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with lasting():
        print("nobody reads this", flush=True)
        say("nor this")
        assert not sys.stdout.isatty()


def test_in_a_pipe_a_table_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    names = [f"runs/shakespeare-20261122-18221{i}" for i in range(4)]
    with redirect_stdout(io.StringIO()) as out:
        print_columns(names, [{"step": 1}] * 4, ["step"])
    assert out.getvalue().split()[:4] == names


@pytest.mark.parametrize("width", [80, 40])
def test_a_terminal_never_hides_which_run_is_which(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    names = [f"runs/shakespeare-20261122-18221{i}" for i in range(9)]
    rows = [{"step": i, "train.optimizer.learning_rate": i / 1000} for i in range(9)]
    with redirect_stdout(Terminal()) as out:
        print_columns(names, rows, ["step", "train.optimizer.learning_rate"])
    legend, *tables = out.text().split("\n\n")
    assert [line.split() for line in legend.splitlines()] == [
        [str(i), name] for i, name in enumerate(names, 1)
    ]
    assert max(map(len, "\n".join(tables).splitlines())) <= width
    heads = [number for table in tables for number in table.splitlines()[0].split()]
    assert heads == [str(i) for i in range(1, 10)]
    assert {f"0.00{i}" for i in range(1, 9)} <= set(out.text().split()), "a number is broken"

    with redirect_stdout(Terminal()) as out:
        print_rows([{"run": name, "step": 1} for name in names], ["run", "step"], as_json=False)
    column = [line[: width - 4] for line in out.text().splitlines()]
    assert "".join(c for line in column for c in line if c != " ").count("18221") == 9
