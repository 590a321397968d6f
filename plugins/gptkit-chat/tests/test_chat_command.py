"""`gptkit chat` as a real process: through pipes, at a terminal, with signals."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gptkit
from gptkit_chat.session import Session, Settings

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="terminals of another kind")

RECIPE: dict[str, Any] = {
    "seed": 1,
    "dataset": {"use": "chat", "val_fraction": 0.5, "template": "chatml"},
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 32, "position": "rotary"},
    "train": {
        "batch_size": 1,
        "steps": 30,
        "eval_every": 1000,
        "eval_batches": 1,
        "device": "cpu",
        "optimizer": {"use": "adamw", "learning_rate": 1e-2},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("chats")
        patch.setenv("GPTKIT_CACHE", str(path / "cache"))
        yield path


def train(folder: Path, name: str, answer: str, *, block_size: int, steps: int) -> Path:
    """A run that has learned one answer to everything."""
    rows = [{"prompt": f"q{i}", "completion": answer} for i in range(8)]
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = RECIPE | {
        "dataset": RECIPE["dataset"] | {"path": str(data), "block_size": block_size},
        "train": RECIPE["train"] | {"steps": steps},
    }
    return gptkit.train(recipe, out=folder / name).path


@pytest.fixture(scope="module")
def short(folder: Path) -> Path:
    """Answers "yes" in the end."""
    return train(folder, "short", "yes", block_size=128, steps=100)


@pytest.fixture(scope="module")
def endless(folder: Path) -> Path:
    """Answers with one letter again and again, and does not come to an end."""
    return train(folder, "endless", "a" * 9000, block_size=4096, steps=8)


PIPES = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)


def start(run: Path, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gptkit", "chat", str(run), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm"}
    return subprocess.Popen(command, env=environment, **options)


def talk(run: Path, *arguments: object, text: str | bytes) -> subprocess.CompletedProcess[str]:
    process = start(run, *arguments, **PIPES)
    out, err = process.communicate(text.encode() if isinstance(text, str) else text, timeout=120)
    return subprocess.CompletedProcess([], process.returncode, out.decode(), err.decode())


def test_answers_alone_are_on_standard_output(short: Path) -> None:
    said = talk(short, "--temperature", 0, text="q1\n\nq2\n/reset\nq3")
    assert (said.returncode, said.stdout) == (0, "yes\nyes\nyes\n")
    assert said.stderr.splitlines() == ["(forgotten)"]


def test_answers_are_those_of_the_public_interface(short: Path) -> None:
    options = ("--temperature", 2, "--seed", 5, "--tokens", 20, "--top-k", 40, "--top-p", 0.9)
    said = talk(short, *options, "--system", "be odd", text="q1\nq2\n")
    chat = Session(
        gptkit.load(short, device="cpu"),
        Settings(tokens=20, temperature=2, top_k=40, top_p=0.9, seed=5),
        "be odd",
    )
    expected = "".join("".join(chat.answer(text)) + "\n" for text in ("q1", "q2"))
    assert (said.returncode, said.stdout) == (0, expected)


def test_an_exported_model_answers_alike(short: Path, folder: Path) -> None:
    path = gptkit.Run(short).export(folder / "short.onnx")
    options = ("--temperature", 1.5, "--tokens", 20)
    run, exported = (talk(model, *options, text="q1\nq2\n") for model in (short, path))
    assert (run.returncode, run.stdout) == (exported.returncode, exported.stdout)
    assert exported.stdout.count("\n") >= 2


def test_what_is_wrong_is_an_error_of_two_lines(short: Path, folder: Path) -> None:
    said = talk(short, text="q1\n/what\nq2\n")
    assert (said.returncode, said.stderr.count("\n")) == (2, 2)
    assert "error: no command /what" in said.stderr
    said = talk(short, text=b"q\xff\n")
    assert said.returncode == 2 and "standard input is not UTF-8" in said.stderr
    said = talk(short, "--checkpoint", "7", text="q")
    assert said.returncode == 1 and "no checkpoint 7" in said.stderr
    other = gptkit.train(
        {
            "dataset": {"use": "text", "source": "sonnets", "tokenizer": "byte", "block_size": 32},
            "model": {"n_layer": 1, "n_head": 1, "n_embd": 8},
            "train": {"steps": 1, "batch_size": 1, "eval_batches": 1, "device": "cpu"},
        },
        out=folder / "text",
    )
    said = talk(other.path, text="q")
    assert said.returncode == 2
    assert "this model cannot chat: the model has no chat template" in said.stderr


def test_a_reader_that_leaves_ends_it_quietly(
    endless: Path, request: pytest.FixtureRequest
) -> None:
    process = start(endless, "--temperature", 0, "--tokens", 4000, **PIPES)
    request.addfinalizer(lambda: _end(process))
    assert process.stdin and process.stdout and process.stderr
    process.stdin.write(b"q\n" * 20)
    process.stdin.close()
    assert len(process.stdout.read(3)) == 3
    process.stdout.close()
    assert process.wait(timeout=120) in (0, 1)
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_signal_ends_a_chat_in_a_pipe(
    endless: Path, signum: signal.Signals, code: int, request: pytest.FixtureRequest
) -> None:
    process = start(endless, "--temperature", 0, "--tokens", 4000, **PIPES)
    request.addfinalizer(lambda: _end(process))
    assert process.stdin and process.stdout
    process.stdin.write(b"q\n" * 20)
    process.stdin.flush()
    assert len(process.stdout.read(3)) == 3
    process.send_signal(signum)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (code, b"stopped\n")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, also if a test has failed."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            pipe.close()


class Screen:
    """A process at a terminal of its own."""

    def __init__(self, run: Path, *arguments: object) -> None:
        import pty

        self.master, slave = pty.openpty()
        ends = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
        self.process = start(run, *arguments, preexec_fn=lambda: _own(slave), **ends)
        os.close(slave)
        self.text = ""

    def _read(self) -> bool:
        """Read what is shown, if anything; whether there can be more."""
        if select.select([self.master], [], [], 0.2)[0]:
            try:
                self.text += os.read(self.master, 65536).decode(errors="replace")
            except OSError:
                return False
        return True

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait(self, text: str, *, times: int = 1) -> None:
        """Read until a text, or anything, was shown that often since the last call."""
        late = time.monotonic() + 120
        while (self.text.count(text) if text else len(self.text)) < times:
            assert time.monotonic() < late, f"no {text!r} in {self.text[-2000:]!r}"
            if not self._read():
                break
        end = -1
        for _ in range(times):
            end = self.text.find(text, end + 1)
        end += len(text)
        self.seen, self.text = self.text[:end], self.text[end:]

    def interrupt(self, text: str) -> None:
        """Press Ctrl-C until a text is shown.

        Python's `input` sees a signal only when a key follows, if it comes at the very moment
        between the last key and the wait for the next (CPython's readline_until_enter_or_signal).
        """
        while text not in self.text:
            self.type("\x03")
            pressed = time.monotonic()
            while text not in self.text and time.monotonic() < pressed + 5:
                self._read()
        self.wait(text)

    def ended(self) -> int:
        """The exit code; what is shown until then is read."""
        end = time.monotonic() + 120
        while self.process.poll() is None:
            assert time.monotonic() < end, self.text[-2000:]
            if not self._read():
                break
        return self.process.wait(timeout=60)

    def close(self) -> None:
        _end(self.process)
        os.close(self.master)


def _own(terminal: int) -> None:
    """Make a terminal that of this process, so that ^C at it is a signal."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


@pytest.fixture
def screen(request: pytest.FixtureRequest) -> Iterator[Any]:
    opened: list[Screen] = []

    def open_(run: Path, *arguments: object) -> Screen:
        opened.append(Screen(run, *arguments))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


def test_at_a_terminal_one_talks_and_ends_with_ctrl_d(short: Path, screen: Any) -> None:
    shown = screen(short, "--temperature", 0)
    shown.wait("> ")
    shown.type("q1\n")
    shown.wait("yes\r\n")
    shown.wait("> ")
    shown.type("/what\n")
    shown.wait("hint:  /help lists them")
    shown.wait("> ")
    shown.type("half a line")
    shown.wait("half a line")
    shown.interrupt("> ")  # the line begins anew
    shown.type("q2\n")
    shown.wait("yes\r\n")
    shown.wait("> ")
    shown.type("\x04")
    assert shown.ended() == 0


def test_ctrl_c_ends_an_answer_and_not_the_chat(endless: Path, screen: Any) -> None:
    shown = screen(endless, "--temperature", 0, "--tokens", 4000)
    shown.wait("> ")
    shown.type("q1\n")
    shown.wait("q1\r\n")
    shown.wait("")
    shown.type("\x03")
    shown.wait("> ")
    assert 1 < len(shown.seen) < 3800
    assert "(the answer ends here" not in shown.seen
    shown.type("/reset\n")
    shown.wait("(forgotten)")
    shown.wait("> ")
    shown.type("/quit\n")
    assert shown.ended() == 0


def test_sigterm_ends_a_chat_that_waits(short: Path, screen: Any) -> None:
    shown = screen(short)
    shown.wait("> ")
    shown.process.send_signal(signal.SIGTERM)
    assert shown.ended() == 143


def test_colours_are_left_out_where_nobody_wants_them(
    short: Path, screen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = screen(short)
    shown.wait("> ")
    assert "\x1b[1m" in shown.seen
    monkeypatch.setenv("NO_COLOR", "1")
    shown = screen(short)
    shown.wait("> ")
    assert "\x1b[1m" not in shown.seen
