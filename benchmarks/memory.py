"""Peak memory of training on a small and on a large text, encoding it included, and its speed."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from benchmarks.report import Result, Table
from benchmarks.timing import Spread, take_turns

MB = 10**6
SMALL, LARGE, QUICK_LARGE = 1 * MB, 2000 * MB, 64 * MB
ROUNDS = 3
STEPS, QUICK_STEPS = 1000, 100
INTERVAL = 0.01
"""Seconds between two samples of the process's memory."""
SEED = 1

RECIPE: dict[str, Any] = {
    "dataset": {"use": "char-text", "block_size": 64},
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 32},
    "train": {"batch_size": 12, "eval_batches": 4, "device": "cpu"},
}

METHOD = """\
`gptkit train` of a tiny model (1 layer of width 32, 12 x 64 tokens a step, {steps} steps, 4 batches
of evaluation, one thread) in a process of its own with an empty cache, in turns (rounds: {rounds}).
The text is the sonnets' lines, shuffled again and again. The peak is VmHWM of /proc/PID/status;
anonymous and file pages are looked at every {interval:.0f} ms, each with a peak of its own, where
encoding is all that happens before the run folder has a recipe, imports included."""


@dataclass
class Usage:
    """What a training process took, in bytes and seconds."""

    peak: float = 0.0
    """Resident memory at its highest."""
    encoding: dict[str, float] = field(default_factory=lambda: {"RssAnon": 0.0, "RssFile": 0.0})
    """Highest anonymous and file pages before training began."""
    training: dict[str, float] = field(default_factory=lambda: {"RssAnon": 0.0, "RssFile": 0.0})
    """Highest anonymous and file pages after training began."""
    start_seconds: float = 0.0
    """Until training began: imports and encoding."""
    steps_per_second: float = 0.0


def measure(quick: bool) -> Result:
    """Train on both texts in turns."""
    sizes = (SMALL, QUICK_LARGE if quick else LARGE)
    rounds, steps = (1, QUICK_STEPS) if quick else (ROUNDS, STEPS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _check_disk(folder, sum(sizes))
        contestants: dict[str, Callable[[], Usage]] = {}
        for size in sizes:
            text = folder / f"{size // MB:,} MB.txt"
            _write_corpus(text, size)
            contestants[text.stem] = partial(_train, text, steps)
        runs = take_turns(contestants, rounds=rounds, warmup=0)
    header = (
        "text", "peak MB", "encoding: anonymous MB", "encoding: file MB",
        "training: anonymous MB", "training: file MB", "s until training", "steps/s",
    )  # fmt: skip
    return Result(
        title="peak memory of training on a small and on a large text",
        table=Table(header, [_row(size, usages) for size, usages in runs.items()]),
        meaning=_meaning(runs, _import_torch()),
        method=METHOD.format(steps=steps, rounds=rounds, interval=INTERVAL * 1e3).replace(
            "\n", " "
        ),
    )


def _check_disk(folder: Path, size: int) -> None:
    needed = 2 * size + 500 * MB  # the texts, their tokens, run folders
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RuntimeError(
            f"{folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; "
            "TMPDIR takes another place"
        )


def _write_corpus(path: Path, size: int) -> None:
    """The sonnets' lines in a new order each time, until the size is reached."""
    lines = np.array(files("gptkit_char_text").joinpath("sonnets.txt").read_bytes().split(b"\n"))
    rng = np.random.default_rng(SEED)
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(b"\n".join(rng.permutation(lines).tolist()) + b"\n")
        file.truncate(size)


def _train(text: Path, steps: int) -> Usage:
    """Train on a text in a process of its own and measure it."""
    with tempfile.TemporaryDirectory(dir=text.parent) as name:
        folder = Path(name)
        run, recipe, log = folder / "run", folder / "recipe.toml", folder / "log"
        recipe.write_text(tomli_w.dumps(_recipe(text, steps)))
        command = [sys.executable, "-m", "gptkit", "train", str(recipe), "--out", str(run)]
        env = os.environ | {"GPTKIT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        with log.open("wb") as output:
            child = subprocess.Popen(command, env=env, stdout=output, stderr=output)
            usage = _measure(child, run / "recipe.toml")
        if child.returncode:
            raise RuntimeError(f"{command} failed:\n{log.read_text(errors='replace')}")
        usage.steps_per_second = _speed(run / "metrics.jsonl")
    return usage


def _recipe(text: Path, steps: int) -> Mapping[str, Any]:
    return {
        "dataset": RECIPE["dataset"] | {"path": str(text)},
        "model": RECIPE["model"],
        "train": RECIPE["train"] | {"steps": steps, "eval_every": steps},
        "callbacks": [{"use": "log", "every": steps // 10, "sample_tokens": 0}],
    }


def _import_torch() -> float:
    """Peak memory of a process that only imports torch."""
    child = subprocess.Popen([sys.executable, "-c", "import torch"])
    return _measure(child, Path("never")).peak


def _measure(child: subprocess.Popen[bytes], sign: Path) -> Usage:
    """Sample a process's memory until it ends; its training began when the file `sign` exists."""
    usage, begin = Usage(), time.perf_counter()
    status = Path(f"/proc/{child.pid}/status")
    while child.poll() is None:
        began = sign.exists()
        now = _memory(status)
        usage.peak = max(usage.peak, now.get("VmHWM", 0.0))
        phase = usage.training if began else usage.encoding
        for kind, highest in phase.items():
            phase[kind] = max(highest, now.get(kind, 0.0))
        if not began:
            usage.start_seconds = time.perf_counter() - begin
        time.sleep(INTERVAL)
    return usage


def _memory(status: Path) -> dict[str, float]:
    """Bytes by kind of memory; empty if the process has ended."""
    try:
        fields = (line.split() for line in status.read_text().splitlines())
        return {f[0].rstrip(":"): float(f[1]) * 1024 for f in fields if f[-1:] == ["kB"]}
    except OSError:
        return {}


def _speed(metrics: Path) -> float:
    """Steps per second between the first and the last line of the log."""
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    first, *_, last = (record for record in records if "elapsed" in record)
    return float((last["step"] - first["step"]) / (last["elapsed"] - first["elapsed"]))


def _row(size: str, usages: list[Usage]) -> list[str]:
    columns = (
        Spread([u.peak for u in usages]).show(unit=MB),
        *(Spread([u.encoding[kind] for u in usages]).show(unit=MB) for kind in usages[0].encoding),
        *(Spread([u.training[kind] for u in usages]).show(unit=MB) for kind in usages[0].training),
        Spread([u.start_seconds for u in usages]).show(1),
        Spread([u.steps_per_second for u in usages]).show(),
    )
    return [size, *columns]


def _meaning(runs: dict[str, list[Usage]], torch_alone: float) -> str:
    small, large = runs
    peaks = {size: Spread([u.peak for u in usages]).median / MB for size, usages in runs.items()}
    rates = {s: Spread([u.steps_per_second for u in usages]).median for s, usages in runs.items()}
    return (
        f"Training on {large} peaks at {peaks[large]:.0f} MB, on {small} at {peaks[small]:.0f} MB, "
        f"and does {rates[large] / rates[small]:.2f} times as many steps per second; importing "
        f"torch alone takes {torch_alone / MB:.0f} MB."
    )
