"""What a command costs before it does anything: CPU and wall seconds of whole processes."""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import psutil

from benchmarks.report import ROOT, Result, Table
from benchmarks.timing import Spread, take_turns

ROUNDS = 11
AIM = 0.25
"""Seconds of CPU that `gptkit --help` may take."""

HELP, TYPER, TORCH = "gptkit --help", 'python -c "import typer"', 'python -c "import torch"'
TRAIN = "gptkit train recipes/shakespeare.toml"
SAMPLE, BY_TORCH = "gptkit sample RUN --tokens 1", "gptkit sample RUN --tokens 1 --engine torch"
FIRST_TOKEN = 0.8
"""Seconds of CPU that the first token of that recipe's model may take."""
PYTHON = Path(sys.executable)
COMMANDS: dict[str, list[str | Path]] = {
    "python -c pass": [PYTHON, "-c", "pass"],
    TYPER: [PYTHON, "-c", "import typer"],
    HELP: [PYTHON.with_name("gptkit"), "--help"],
    "gptkit plugins list": [PYTHON.with_name("gptkit"), "plugins", "list"],
    TORCH: [PYTHON, "-c", "import torch"],
    "gptkit check recipes/shakespeare.toml": [
        PYTHON.with_name("gptkit"),
        "check",
        "recipes/shakespeare.toml",
    ],
}


def measure(quick: bool) -> Result:
    """Run every command in turn."""
    rounds = 1 if quick else ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        run = _trained(Path(folder))
        sampling = [COMMANDS[HELP][0], "sample", run, "--prompt", "Shall I", "--tokens", "1"]
        commands = COMMANDS | {SAMPLE: sampling, BY_TORCH: [*sampling, "--engine", "torch"]}
        contestants: dict[str, Callable[[], tuple[float, float]]] = {
            name: partial(_run, command) for name, command in commands.items()
        } | {f"`{TRAIN}` to its first step": _until_first_step}
        # after the first sample its graph is kept
        runs = take_turns(contestants, rounds=rounds, warmup=0 if quick else 1)
    cpu = {name: Spread([c for c, _ in values]) for name, values in runs.items()}
    wall = {name: Spread([w for _, w in values]) for name, values in runs.items()}
    rows = [(_title(name), cpu[name].show(3), wall[name].show(3)) for name in contestants]
    return Result(
        title="what a command costs before it does anything",
        table=Table(("command", "CPU s", "wall s"), rows),
        meaning=_meaning({name: spread.median for name, spread in cpu.items()}),
        method=f"Rounds in turns: {rounds}. CPU is user and system time of the whole process, or "
        "until it says that its first step, which is included, is done; all on one thread.",
    )


def _title(name: str) -> str:
    return name if "`" in name else f"`{name}`"


def _run(command: list[str | Path]) -> tuple[float, float]:
    """CPU and wall seconds of a process."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=_environment())
    wall, after = perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime), wall


def _trained(folder: Path) -> Path:
    """A run of one step of the README's recipe."""
    settings = ["train.steps=1", "train.eval_batches=1", "callbacks.log.sample_tokens=0"]
    sets = [part for setting in settings for part in ("--set", setting)]
    _run([PYTHON.with_name("gptkit"), *TRAIN.split()[1:], *sets, "--out", folder / "run"])
    return folder / "run"


def _until_first_step() -> tuple[float, float]:
    """CPU and wall seconds until training reports its first step.

    Raises:
        RuntimeError: it ended before.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = ["--set", "callbacks.log.every=1", "--out", f"{folder}/run"]
        command = [str(PYTHON.with_name("gptkit")), *TRAIN.split()[1:], *options]
        begin = perf_counter()
        with subprocess.Popen(
            command, cwd=ROOT, env=_environment(), stderr=subprocess.PIPE, text=True
        ) as child:
            assert child.stderr
            if not any(line.startswith("step 1/") for line in child.stderr):
                raise RuntimeError(f"{TRAIN} took no step")
            wall, times = perf_counter() - begin, psutil.Process(child.pid).cpu_times()
            child.kill()
        return times.user + times.system, wall


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def _meaning(cpu: dict[str, float]) -> str:
    verdict = "within" if cpu[HELP] <= AIM else "over"
    return (
        f"`{HELP}` takes {cpu[HELP]:.2f} s of CPU, {verdict} the aim of {AIM} s: "
        f"{cpu[HELP] - cpu[TYPER]:.2f} s more than importing typer alone, and "
        f"{cpu[TORCH] / cpu[HELP]:.0f} times less than importing torch, which it does not do. "
        f"The first token of the README's model takes {cpu[SAMPLE]:.2f} s on a CPU, "
        f"{'within' if cpu[SAMPLE] <= FIRST_TOKEN else 'over'} the aim of {FIRST_TOKEN} s: "
        f"{cpu[SAMPLE] / cpu[BY_TORCH]:.2f} times what it takes with torch."
    )
