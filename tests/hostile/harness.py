"""Run many hostile cases in one process, each with an alarm, all with a limit of memory.

An area is a module of this package, `tests/hostile/NAME.py`, with

    def prepare(base: Path) -> None          makes the good files, once
    def case(random: Random, base: Path, folder: Path) -> Case
                                             makes one hostile case in the empty `folder`

A case is made from its seed alone, so that a failure can be repeated:

    python -m tests.hostile NAME SEED [COUNT]
"""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

SECONDS, WAITING = 10, 120
"""Of computing and in all: a case that takes longer hangs."""
MEMORY = 8 << 30
"""Bytes of address space, in which torch alone takes 3 GiB."""
GOOD = ("fine", "refused")
OUTCOMES = (*GOOD, "traceback", "silent", "garbled", "hang", "memory", "crash")
"""fine: exit 0. refused: an error of two lines. silent: a failure without an error. garbled: a
control character was printed. memory: the limit was reached. crash: the process died."""


@dataclass(frozen=True)
class Case:
    """One hostile input."""

    arguments: Sequence[object]
    """What is typed after `gptkit`."""
    about: str = ""
    """What is wrong, for the failure's message."""
    expect: Callable[[int, str, str], str | None] | None = None
    """(exit code, stdout, stderr) -> a further fault, or None: for what must not pass as good."""
    call: Callable[[], object] | None = None
    """What is called from Python, in place of the command line."""
    perform: Callable[[], tuple[int, str, str]] | None = None
    """Gives exit code, stdout, stderr of a process of its own, in place of one in this process;
    `expect` alone says whether it may fail without a word."""


@dataclass
class Result:
    """The outcomes of many cases."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class _TooLong(BaseException):
    """The alarm; no `except Exception` catches it."""


def run(area: str, first: int, count: int) -> Result:
    """Run cases in child processes; one that dies is replaced and goes on with the next case."""
    result, seed, end = Result(), first, first + count
    with tempfile.TemporaryDirectory() as temporary:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GPTKIT_CACHE": f"{temporary}/cache"}
        command = [sys.executable, "-m", "tests.hostile", area, "--in", temporary]
        while seed < end:
            child = subprocess.Popen(
                [*command, str(seed), str(end - seed)],
                stdout=subprocess.PIPE,
                env=environment,
                text=True,
            )
            assert child.stdout
            done = seed
            for line in child.stdout:
                told = json.loads(line)
                done = told["seed"] + 1
                result.counts[told["outcome"]] += 1
                if told["outcome"] not in GOOD:
                    result.failures.append(_describe(area, told))
            child.stdout.close()
            if child.wait() and done < end:
                result.counts["crash"] += 1
                told = {"seed": done, "outcome": f"crash {child.returncode}", "text": ""}
                result.failures.append(_describe(area, told))
                done += 1
            seed = max(done, seed + 1)
    return result


def run_here(area: str, first: int, count: int, base: Path) -> Iterator[dict[str, Any]]:
    """Run cases in this process; yields their outcomes."""
    module = import_module(f"tests.hostile.{area}")
    if not (base / "prepared").exists():
        module.prepare(base)
        (base / "prepared").touch()
    import_module("gptkit.runs.train")  # slow, and not the first case's fault
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _raise_too_long)
    signal.signal(signal.SIGPROF, _raise_too_long)
    home = Path.cwd()
    for seed in range(first, first + count):
        folder = base / f"case-{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        made = module.case(Random(f"{area} {seed}"), base, folder)
        os.chdir(folder)
        try:
            outcome, text = _outcome(made)
        finally:
            os.chdir(home)
            shutil.rmtree(folder, ignore_errors=True)
        about = f"{made.about}\n  gptkit {' '.join(map(str, made.arguments))}"
        yield {"seed": seed, "outcome": outcome, "about": about, "text": text}


def _outcome(case: Case) -> tuple[str, str]:
    """The class of what the command line does with a case, and what it printed."""
    signal.alarm(WAITING)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        code, printed, told = case.perform() if case.perform else _perform(case)
    except _TooLong:
        return "hang", traceback.format_exc()[-3000:]
    except MemoryError:
        return "memory", traceback.format_exc()[-3000:]
    except BaseException:
        return "traceback", traceback.format_exc()[-3000:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    text = f"exit {code}\n{printed[-500:]}\n{told[-1500:]}"
    if case.expect and (fault := case.expect(code, printed, told)):
        return "silent", f"{fault}\n{text}"
    if not case.perform:
        if code and not any(line.startswith("error: ") for line in told.splitlines()):
            return "silent", text
        if any((c < " " and c not in "\n\t\r") or "\x7f" <= c < "\xa0" for c in told):
            return "garbled", repr(text)
    return "fine" if code == 0 else "refused", text


def _perform(case: Case) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a case in this process."""
    from gptkit.cli.app import main
    from gptkit.errors import GptkitError

    out, err = _stream("strict"), _stream("backslashreplace")
    code: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            sys.argv = ["gptkit", *map(str, case.arguments)]
            (case.call or main)()
    except GptkitError as error:  # a call's; the command line prints it
        code = error.exit_code
        err.write(f"error: {error}\n")
    except SystemExit as end:
        code = end.code
    return code if isinstance(code, int) else int(bool(code)), _text(out), _text(err)


def _stream(errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("utf-8", "replace")


def _raise_too_long(signum: int, frame: FrameType | None) -> None:
    raise _TooLong


def _describe(area: str, told: dict[str, Any]) -> str:
    repeat = f"python -m tests.hostile {area} {told['seed']}"
    return f"{told['outcome']}: {repeat}\n{told.get('about', '')}\n{told['text']}"
