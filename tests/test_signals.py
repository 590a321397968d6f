"""Signals, sent to real processes: the first one saves, the second one does not wait."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from gptkit.runs import checkpoint, signals
from tests.support import RUNNING

if sys.platform == "win32":
    pytest.skip("there is no SIGTERM to catch", allow_module_level=True)

ENDLESS = {"steps": 1_000_000, "eval_every": 1_000_000}
LOG = [{"use": "log", "every": 1}]

Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts `gptkit ARGS` as a real process in tmp_path, with pipes unless told otherwise."""
    processes: list[subprocess.Popen[str]] = []

    def call(*args: object, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "gptkit", *map(str, args)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=tmp_path, text=True, **(pipes | options))
        processes.append(process)
        return process

    yield call
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def slow_to_evaluate(tiny_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    """A recipe that saves step 1 and then spends half a minute on the evaluation of step 2."""
    text = tmp_path / "long.txt"
    text.write_text("All work and no play makes Jack a dull boy.\n" * 20_000)
    return tiny_recipe(
        dataset={"path": str(text), "val_fraction": 0.5},
        train={"steps": 3, "batch_size": 1, "save_every": 1, "eval_batches": 1_000_000},
        callbacks=LOG,
    )


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_finishes_the_step_and_saves(
    signum: signal.Signals, tiny_recipe: Callable[..., Path], launch: Launch, tmp_path: Path
) -> None:
    folder = tmp_path / "my run"
    process = launch("train", tiny_recipe(train=ENDLESS, callbacks=LOG), "--out", folder)
    read = read_until("step 3/", process.stderr)
    process.send_signal(signum)
    stdout, rest = process.communicate(timeout=60)

    assert process.returncode == 128 + signum
    assert stdout == ""
    assert "Traceback" not in rest
    *lines, error, hint = (read + rest).splitlines()
    shown = [match[1] for line in lines if (match := re.match(r"step (\d+)/", line))]
    step = int(shown[-1])
    assert step >= 3
    assert error == f"error: stopped by {signum.name} at step {step}, checkpoint saved"
    assert shlex.split(hint) == ["hint:", "gptkit", "resume", str(folder)]
    assert saved_steps(folder) == [step]
    metrics = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == list(range(1, step + 1))


def test_the_second_sigterm_ends_it_at_once(
    slow_to_evaluate: Path, launch: Launch, cli: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = launch("train", slow_to_evaluate, "--out", folder)
    read_until("step 2/", process.stderr)
    insist(process, signal.SIGTERM)

    assert process.returncode == 143
    assert process.communicate()[1].endswith(
        "\nstopped at once, without saving; checkpoints are intact\n"
    )
    assert saved_steps(folder) == [1]

    recipe = folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("eval_batches = 1000000", "eval_batches = 1"))
    result = cli("resume", folder)
    assert result.exit_code == 0
    assert "from step 1\n" in result.stderr
    assert saved_steps(folder)[-1] == 3


def test_the_second_ctrl_c_ends_it_at_once_and_gives_the_terminal_its_cursor_back(
    slow_to_evaluate: Path, launch: Launch, tmp_path: Path
) -> None:
    keyboard, terminal = os.openpty()
    with open(keyboard, "rb", buffering=0) as screen:  # noqa: PTH123 (a descriptor, no path)
        process = launch(
            "train",
            slow_to_evaluate,
            "--out",
            tmp_path / "run",
            stderr=terminal,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(terminal)
        shown = b""
        while b"2/3" not in shown:
            shown += screen.read(1024)
        insist(process, signal.SIGINT)
        shown += read_to_the_end(screen)

    assert process.returncode == 130
    assert b"\x1b[?25l" in shown
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l")
    assert b"Traceback" not in shown
    assert b"stopped at once" in shown
    assert saved_steps(tmp_path / "run") == [1]


def test_a_closed_terminal_ends_training_after_a_checkpoint(
    tiny_recipe: Callable[..., Path], launch: Launch, tmp_path: Path
) -> None:
    import fcntl
    import termios

    keyboard, terminal = os.openpty()
    process = launch(
        "train", tiny_recipe(train=ENDLESS, callbacks=LOG), "--out", "run",
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # its own terminal, as a shell's
    )  # fmt: skip
    os.close(terminal)
    with open(keyboard, "rb", buffering=0) as screen:  # noqa: PTH123 (a descriptor, no path)
        shown = b""
        while b"step 3/" not in shown and b"3/1" not in shown:
            shown += screen.read(1024)
    assert process.wait(timeout=60) == 129
    (step,) = saved_steps(tmp_path / "run")
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == list(range(1, step + 1))


def test_ctrl_c_while_sampling(
    tiny_recipe: Callable[..., Path], cli: Callable[..., Any], launch: Launch, tmp_path: Path
) -> None:
    assert cli("train", tiny_recipe(), "--out", tmp_path / "run").exit_code == 0
    process = launch("sample", tmp_path / "run", "--tokens", 100_000_000)
    assert process.stdout
    assert len(process.stdout.read(100)) == 100
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == f"{RUNNING}stopped\n"


def read_until(text: str, file: IO[str] | None) -> str:
    """What a process says up to the first line that starts with `text`."""
    assert file
    read = ""
    for line in file:
        read += line
        if line.startswith(text):
            return read
    pytest.fail(f"it ended without a line that starts with {text!r}:\n{read}")


def read_to_the_end(screen: IO[bytes]) -> bytes:
    read = b""
    try:
        while chunk := screen.read(1024):
            read += chunk
    except OSError:  # how Linux says that the other side has closed the terminal
        pass
    return read


def insist(process: "subprocess.Popen[str]", signum: signal.Signals) -> None:
    """Send a signal again and again, like somebody in a hurry, until the process ends."""
    for _ in range(100):
        process.send_signal(signum)
        try:
            process.wait(timeout=0.1)
            return
        except subprocess.TimeoutExpired:
            continue
    pytest.fail("it did not end within ten seconds")


def saved_steps(folder: Path) -> list[int]:
    """The steps of all checkpoints, each of which is intact."""
    folders = checkpoint.step_folders(folder / "checkpoints")
    return [checkpoint.load(path)[0].step for path in folders]


@pytest.mark.parametrize("after", [signal.SIGINT, signal.SIGHUP])
def test_what_comes_from_a_closed_terminal_is_no_second_signal(after: signal.Signals) -> None:
    calls: list[str] = []

    def second(signum: int, frame: Any) -> None:
        calls.append(signal.Signals(signum).name)

    with signals.handling(signals.ENDING, lambda: calls.append("first"), second=second):
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(after)
        signal.raise_signal(signal.SIGTERM)
    assert calls == ["first", "SIGTERM"]
