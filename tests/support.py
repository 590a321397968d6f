"""What tests of several files do: run a program, train a small model."""

import itertools
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
import torch

from gptkit.runs import checkpoint
from gptkit.runs import train as run


def execute(*command: object, **options: Any) -> str:
    """What a command prints; where it fails, so does the test, with what it said."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=280, **options
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def train(folder: Path, dataset: dict[str, Any], model: dict[str, Any], *, steps: int = 1) -> Path:
    """A run of the recipe `r.toml` in a folder, in its folder "r"."""
    recipe = {
        "seed": 1, "dataset": dataset, "model": model,
        "train": {"steps": steps, "batch_size": 8, "eval_batches": 1, "device": "cpu"},
    }  # fmt: skip
    (folder / "r.toml").write_text(tomli_w.dumps(recipe), encoding="utf-8")
    return run.train(folder / "r.toml", out=folder / "r", report=print).path


def stir(run_folder: Path, *, scale: float) -> Path:
    """Give a run's only checkpoint random weights, all of which matter."""
    (step_folder,) = checkpoint.step_folders(run_folder / "checkpoints")
    state, files = checkpoint.load(step_folder)
    torch.manual_seed(3)
    weights = {name: torch.randn_like(x) * scale for name, x in files["model"].items()}
    checkpoint.save(run_folder / "checkpoints", state, files | {"model": weights})
    return run_folder


def pairwise(**options: Sequence[Any]) -> list[dict[str, Any]]:
    """Few combinations of options in which every two values of two options meet."""
    sizes = {name: len(values) for name, values in options.items()}
    missing = pairs({name: range(size) for name, size in sizes.items()})
    cases = []
    while missing:
        first, i, second, j = min(missing)
        case = {first: i, second: j}
        for name in options:
            if name not in case:
                each = ((len(missing & pairs(case | {name: k})), -k) for k in range(sizes[name]))
                case[name] = -max(each)[1]
        missing -= pairs(case)
        cases.append({name: options[name][case[name]] for name in options})
    return cases


def pairs(case: Mapping[str, int | Sequence[int]]) -> set[tuple[str, int, str, int]]:
    """Two options and a value of each, by the values' positions."""
    chosen = {name: [v] if isinstance(v, int) else list(v) for name, v in case.items()}
    return {
        (first, i, second, j)
        for first, second in itertools.combinations(sorted(chosen), 2)
        for i in chosen[first]
        for j in chosen[second]
    }
