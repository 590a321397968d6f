"""What a long training keeps: memory, descriptors, threads and bytes of metrics, step by step."""

import os
import sys
import tempfile
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import tomli_w

from benchmarks.report import Result, Table
from benchmarks.timing import Spread

STEPS, QUICK_STEPS = 20_000, 40
SAMPLES = 200
"""How often the process is looked at."""
RECIPE: dict[str, Any] = {
    "dataset": {"use": "char-text", "block_size": 16},
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 16},
    "train": {"batch_size": 4, "eval_every": 100, "eval_batches": 1, "device": "cpu"},
    "callbacks": [
        {"use": "lr-decay"},
        {"use": "grad-clip"},
        {"use": "ema"},
        {"use": "log", "every": 1, "sample_tokens": 8},
    ],
}

LOOK = """
import os, sys
from pathlib import Path
import gptkit
from gptkit.plugin import Callback

class Look(Callback):
    def on_step_end(self, state):
        if state.step % int(sys.argv[3]) == 0:
            resident = int(Path("/proc/self/statm").read_text().split()[1])
            print(state.step, resident * os.sysconf("SC_PAGESIZE"),
                  len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))

gptkit.train(sys.argv[1], out=sys.argv[2], callbacks=[Look()])
"""

METHOD = """\
`gptkit.train` of {steps:,} steps of a tiny model in a process of its own, one thread of torch; all
callbacks of gptkit, a line of metrics every step, an evaluation, a preview and a checkpoint every
100 steps. The process is looked at {samples} times in /proc/self; the cells are of the second half.
The slope is that of the line of least squares through the memory of the second half."""


def measure(quick: bool) -> Result:
    """One long run."""
    steps = QUICK_STEPS if quick else STEPS
    with tempfile.TemporaryDirectory() as folder:
        looks, metrics = _train(Path(folder), steps)
    half = looks[len(looks) // 2 :]
    slope = float(np.polyfit(half[:, 0], half[:, 1], 1)[0])
    rows = [
        ("resident memory, MiB", Spread([*half[:, 1]]).show(1, unit=2**20)),
        ("open descriptors", Spread([*half[:, 2]]).show()),
        ("threads", Spread([*half[:, 3]]).show()),
    ]
    return Result(
        title="what a long training keeps",
        table=Table(("of the process", "second half"), rows),
        meaning=f"Memory grows by {slope:,.1f} bytes a step, metrics.jsonl by "
        f"{metrics / steps:,.0f} bytes a step.",
        method=METHOD.format(steps=steps, samples=len(looks)).replace("\n", " "),
    )


def _train(folder: Path, steps: int) -> tuple[np.ndarray[Any, np.dtype[np.float64]], int]:
    """What was seen, rows of (step, bytes, descriptors, threads); and the bytes of the metrics."""
    recipe, out = folder / "long.toml", folder / "run"
    recipe.write_text(tomli_w.dumps(RECIPE | {"train": RECIPE["train"] | {"steps": steps}}))
    command = [sys.executable, "-c", LOOK, recipe, out, str(max(1, steps // SAMPLES))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GPTKIT_CACHE": str(folder / "cache")}
    done = run(command, capture_output=True, text=True, check=True, env=environment)
    looks = [[float(word) for word in line.split()] for line in done.stdout.splitlines()]
    return np.array(looks), (out / "metrics.jsonl").stat().st_size
