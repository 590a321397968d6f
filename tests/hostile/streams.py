"""An area: every command with standard streams that are broken, closed or full."""

import io
import os
import pty
import re
import select
import shutil
import signal
import sys
import tty
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from random import Random
from time import monotonic
from traceback import print_exc

from tests.hostile.harness import Case

RECIPE = """
seed = 1
[dataset]
use = "char-text"
path = "PATH"
block_size = 16
[model]
n_layer = 1
n_head = 2
n_embd = 16
[train]
steps = 6
batch_size = 4
eval_every = 3
eval_batches = 1
device = "cpu"
[[callbacks]]
use = "log"
every = 1
sample_tokens = 40
"""
LINE = "Shall I compare thee?\u3000吾輩は猫である。\x1b]0;owned\x07\u202e\x9b31m é\r\n"
NAMES = ["plain", "x日", "\x1b]0;owned\x07", "a\u202eb", "two words"]
TRAINING = ["train", "resume", "train noisy"]
COMMANDS = [*TRAINING, "--help", "--version", "check", "convert", "doctor", "eval", "export"]
COMMANDS += ["plugins list", "plugins show log", "plugins check", "nonsense", "train --help"]
COMMANDS += ["runs list", "runs show", "runs compare", "runs list --json", "runs show --json"]
COMMANDS += ["sample", "sample --ids", "sample -n 3", "sample missing", "completion"]
LEAVING = ["left", "left later", "terminal closed"]
KINDS = [*LEAVING, "pipe", "terminal", "full", "closed", "file", "unwritable", "not waiting"]
WARM = ["torch._dynamo", "onnxruntime", "rich.progress", "typer.rich_utils", "gptkit.cli.app"]
WARM += ["gptkit.analysis.evaluation", "gptkit.loading", "gptkit.onnx.export.format", "gptkit.run"]
WARM += ["gptkit_char_text", "gptkit_cifar10", "gptkit_ema", "gptkit_grad_clip", "gptkit_log"]
WARM += ["gptkit_lr_decay", "gptkit.cli.mistakes", "gptkit.show.results", "gptkit.show.exports"]
WARM += ["gptkit.show.samples", "gptkit.show.doctor", "gptkit.show.runs", "gptkit.show.plugins"]
ENCODINGS = ["utf-8", "utf-8", "latin-1", "cp1252", "ascii"]


@dataclass
class Stream:
    """A standard stream: the end that the command gets, and what a reader got from the other."""

    kind: str
    folder: Path
    theirs: int | None = None
    ours: int | None = None
    got: bytes = b""
    leaves_after: int = field(default=1 << 60)

    def open(self) -> None:
        """Make both ends."""
        if self.kind in ("terminal", "terminal closed"):
            self.ours, self.theirs = pty.openpty()
            tty.setraw(self.theirs)
        elif self.kind in ("pipe", "left", "left later", "not waiting"):
            self.ours, self.theirs = os.pipe()
            os.set_blocking(self.theirs, self.kind != "not waiting")
        elif self.kind != "closed":
            path = {"full": "/dev/full", "unwritable": "/dev/null"}.get(self.kind)
            flags = os.O_RDONLY if self.kind == "unwritable" else os.O_RDWR | os.O_CREAT
            self.theirs = os.open(path or self.folder / f"{id(self)}", flags, 0o600)
        if self.kind == "left":
            self.leave()

    def leave(self) -> None:
        """The reader goes away."""
        if self.ours is not None:
            os.close(self.ours)
            self.ours = None

    def read(self) -> None:
        """Take what is there."""
        assert self.ours is not None
        try:
            chunk = os.read(self.ours, 1 << 16)
        except OSError:  # the terminal's other end is closed
            chunk = b""
        self.got += chunk
        if not chunk or len(self.got) > self.leaves_after:
            self.leave()

    def finish(self) -> str:
        """What was written, as text."""
        if self.kind == "file" and self.theirs is not None:
            self.got = os.pread(self.theirs, 1 << 22, 0)
        self.leave()
        if self.theirs is not None:
            os.close(self.theirs)
            self.theirs = None
        return self.got.decode("utf-8", "surrogateescape")


def prepare(base: Path) -> None:
    """A text, a run, and all that commands import; in a child, since it makes threads."""
    (base / "text.txt").write_text(LINE * 60, newline="")
    (base / "r.toml").write_text(RECIPE.replace("PATH", str(base / "text.txt")))
    streams = Stream("pipe", base), Stream("pipe", base)
    arguments = ["train", base / "r.toml", "--out", base / "run"]
    code, _, told = _run(lambda: _begin("", arguments, *streams, ENCODINGS[:2]), *streams)
    assert code == 0, told


def case(random: Random, base: Path, folder: Path) -> Case:
    """One command with two streams."""
    _warm()
    command = random.choice(COMMANDS)
    name = random.choice([*NAMES, *(["caf\udce9"] if command.startswith("runs ") else [])])
    run = folder / "runs" / name
    kinds = random.choice(KINDS), random.choice(KINDS)
    out, err = (Stream(kind, folder) for kind in kinds)
    for stream in (out, err):
        if stream.kind in ("left later", "terminal closed"):
            stream.leaves_after = random.choice([0, 1, 100, 300])
    encodings = random.choice(ENCODINGS), random.choice(ENCODINGS)
    arguments = _arguments(command, base, folder, run)
    about = f"{command!r}: stdout {kinds[0]}, stderr {kinds[1]}, {encodings}, {name!a}"

    def perform() -> tuple[int, str, str]:
        return _run(lambda: _begin(command, arguments, out, err, encodings), out, err)

    def expect(code: int, printed: str, told: str) -> str | None:
        return _fault(command, out, err, run, code)

    return Case(list(map(ascii, arguments)), about, expect=expect, perform=perform)


def _arguments(command: str, base: Path, folder: Path, run: Path) -> list[object]:
    if command not in ("train", "train noisy"):
        shutil.copytree(base / "run", run, symlinks=True)
    if command == "resume":
        recipe = run / "recipe.toml"
        recipe.write_text(re.sub("^steps = 6", "steps = 9", recipe.read_text(), flags=re.M))
    if command == "convert":
        (folder / "c.py").write_text("n_layer = 2 \nfoo = '\u202e\x1b[31m'\n")
        return ["convert", folder / "c.py"]
    if command in ("train", "train noisy"):
        return ["train", base / "r.toml", "--out", run]
    if command in ("resume", "eval", "sample", "sample --ids", "sample -n 3"):
        return [*command.split(), run, *(["--tokens", 60] if command.startswith("sample") else [])]
    if command == "sample missing":
        return ["sample", folder / run.name]
    if command == "check":
        return ["check", base / "r.toml", "--set", f"dataset.path={folder / 'x日.txt'}"]
    if command == "export":
        return ["export", run, "--out", folder / "m.onnx"]
    if command.startswith("runs show"):
        return [*command.split(), run]
    return ["runs", "compare", run, run] if command == "runs compare" else [*command.split()]


def _fault(command: str, out: Stream, err: Stream, run: Path, code: int) -> str | None:
    """What must not have happened, if it did."""
    told = err.got.decode("utf-8", "replace")
    if "Traceback" in told or "Exception ignored" in told:
        return "a traceback"
    if out.kind in ("terminal", "terminal closed") and re.search(rb"\x1b\]0;|\xc2\x9b", out.got):
        return "an escape sequence reached the terminal"
    usual = {"nonsense": 2, "sample missing": 2}.get(command, 0)
    full = out.kind in ("full", "unwritable") and usual == 0
    if full and err.kind in ("pipe", "file") and "error: standard output: " not in told:
        return "not a word about stdout"
    allowed = {1} if full else {usual}
    if out.kind in LEAVING and command not in TRAINING:
        allowed |= {1}
    if code not in allowed:
        return f"exit code {code}, not {allowed}"
    steps = 9 if command == "resume" else 6
    if command in TRAINING and not (run / f"checkpoints/step-{steps:08}").is_dir():
        return "training did not go on"
    return None


def _warm() -> None:
    """Import once what every child needs."""
    for name in WARM:
        import_module(name)


def _begin(
    command: str, arguments: Sequence[object], out: Stream, err: Stream, encodings: Sequence[str]
) -> None:
    """In the child: the process that Python makes of these streams, then the command line."""
    from gptkit.__main__ import main

    os.close(0)
    for number, stream in ((1, out), (2, err)):
        os.close(number) if stream.theirs is None else os.dup2(stream.theirs, number)
    os.closerange(3, 256)
    standard = []
    for number, stream, encoding in ((1, out, encodings[0]), (2, err, encodings[1])):
        if stream.theirs is None:
            standard.append(None)
            continue
        raw = open(number, "wb", closefd=False)  # noqa: SIM115
        errors, lines = ("backslashreplace", True) if number == 2 else ("strict", os.isatty(1))
        standard.append(io.TextIOWrapper(raw, encoding, errors, line_buffering=lines))
    sys.stdin, sys.stdout, sys.stderr = None, *standard
    sys.argv = ["gptkit", *map(str, arguments)]
    sys.modules["__main__"].__package__ = ""  # as of the script `gptkit`
    if command == "completion":
        os.environ |= {
            "_GPTKIT_COMPLETE": "complete_bash",
            "COMP_WORDS": "gptkit sample ",
            "COMP_CWORD": "2",
        }
    if command == "train noisy":
        _make_noisy()
    main()


def _make_noisy() -> None:
    """Let a callback print much at every step, also to the descriptors themselves."""
    from gptkit_log import Log

    before = Log.on_step_end

    def on_step_end(self: Log, state: object) -> None:
        print("noise 日 " * 2000, flush=True)
        print("noise", file=sys.stderr)
        sys.stdout.buffer.write(b"noise\n")
        sys.stdout.buffer.flush()
        for number in (1, 2):
            with suppress(OSError):
                os.write(number, b"noise\n")
        before(self, state)

    Log.on_step_end = on_step_end


def _run(begin: Callable[[], None], out: Stream, err: Stream) -> tuple[int, str, str]:
    """Fork, read both streams until the child ends; its exit code and what was read."""
    out.open()
    err.open()
    child = os.fork()
    if child == 0:
        _end_as_python(begin)
    for stream in (out, err):
        if stream.theirs is not None and stream.kind != "file":
            os.close(stream.theirs)
            stream.theirs = None
    try:
        status = _read(child, [out, err])
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return os.waitstatus_to_exitcode(status), out.finish(), err.finish()


def _read(child: int, streams: list[Stream]) -> int:
    deadline = None
    while True:
        waiting = {s.ours: s for s in streams if s.ours is not None}
        ready, _, _ = select.select(list(waiting), [], [], 0.005)
        for number in ready:
            waiting[number].read()
        if deadline is None:
            ended, status = os.waitpid(child, os.WNOHANG)
            deadline = monotonic() + 0.2 if ended else None  # what is left to read
        elif not ready or monotonic() > deadline:
            return status


def _end_as_python(begin: Callable[[], None]) -> None:
    """End this process as the interpreter does, which flushes the standard streams."""
    code: object = 1
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        begin()
    except SystemExit as end:
        code = end.code
    except BaseException:
        with suppress(BaseException):
            print_exc()
    number = code if isinstance(code, int) else int(bool(code))
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        number = 120
    os._exit(number)
