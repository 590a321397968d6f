"""The memory that `gptkit plan` predicts beside what a training takes, for seven shapes."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.report import Result, Table
from benchmarks.timing import Spread, take_turns
from benchmarks.training import ENDLESS, SEED, NoCodec
from gptkit import memory
from gptkit.analysis.plan import TRIAL, make_plan
from gptkit.plugin import Data, Dataset, Split
from gptkit.recipe import build
from gptkit.recipe.build import Plugins
from gptkit.runs.setup import build_trainer

MB = 10**6
ROUNDS, STEPS = 3, 6

Shape = tuple[str, int, int, Mapping[str, Any], Mapping[str, Any]]
"""A name, vocabulary and context, the tables `[model]` and `[train]`."""

SHAPES: tuple[Shape, ...] = (
    (
        "4L 4H 128, T 64, B 12",
        65, 64,
        {"n_layer": 4, "n_head": 4, "n_embd": 128},
        {"batch_size": 12},
    ),
    (
        "8L 8H 256, T 128, B 16",
        65, 128,
        {"n_layer": 8, "n_head": 8, "n_embd": 256},
        {"batch_size": 16},
    ),
    (
        "4L 8H 256, T 256, B 4, 50,257 tokens",
        50257, 256,
        {"n_layer": 4, "n_head": 8, "n_embd": 256},
        {"batch_size": 4},
    ),
    (
        "6L 6H 384, T 256, B 8: rotary, RMS, SwiGLU, Muon",
        65, 256,
        {"n_layer": 6, "n_head": 6, "n_embd": 384, "position": "rotary", "norm": "rmsnorm",
         "mlp": "swiglu", "qk_norm": True, "bias": False},
        {"batch_size": 8, "optimizer": {"use": "muon"}},
    ),
    (
        "12L 8H 256, T 256, B 8, recompute",
        65, 256,
        {"n_layer": 12, "n_head": 8, "n_embd": 256},
        {"batch_size": 8, "recompute": True},
    ),
    (
        "GPT-2 124M, T 128, B 4 in two micro-batches",
        50257, 128,
        {"preset": "gpt2"},
        {"batch_size": 4, "micro_batch_size": 2},
    ),
    (
        "10L 5H 320, T 192, B 6: rotary, squared ReLU, no biases",
        500, 192,
        {"n_layer": 10, "n_head": 5, "n_embd": 320, "position": "rotary", "mlp": "relu2",
         "bias": False, "tie_embeddings": False},
        {"batch_size": 6},
    ),
)  # fmt: skip

METHOD = """\
The prediction is that of `gptkit plan`: what the process has taken after a step of a tiny model,
and the formulas of `recipe/training_memory.py`. Measured is the highest resident memory (VmHWM)
of another process that trains {steps} steps as `gptkit train` does, in float32 and eager on one
thread, in turns (rounds: {rounds}). The trial is that of `gptkit plan`:
{trial} steps. The part of the training is what is above the process without a model, of which
importing torch is the most."""


class Noise(Split):
    """Windows of tokens that follow from their indices."""

    def __init__(self, vocab_size: int, block_size: int) -> None:
        self.vocab_size, self.stride = vocab_size, block_size

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        rows = (indices[:, None] + torch.arange(self.stride + 1)) * 7919 % self.vocab_size
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


class Noises:
    """A data set of them, in the place of the recipe's."""

    def __init__(self, vocab_size: int, block_size: int) -> None:
        self.sizes = vocab_size, block_size

    def load(self) -> Data:
        """The same windows for training and validation."""
        split = Noise(*self.sizes)
        return Data(split, split, NoCodec(), *self.sizes)


def measure(quick: bool) -> Result:
    """Predict and train every shape in turns, each in processes of its own."""
    rounds, shapes = (1, SHAPES[:2]) if quick else (ROUNDS, SHAPES)
    found = take_turns(
        {shape[0]: partial(_in_processes, number) for number, shape in enumerate(shapes)},
        rounds=rounds,
        warmup=0,
    )
    spreads = {
        name: {key: Spread([run[key] for run in runs]) for key in runs[0]}
        for name, runs in found.items()
    }
    errors = {n: s["predicted"].median / s["measured"].median - 1 for n, s in spreads.items()}
    rows = [
        [
            name,
            *(s[key].show(unit=MB) for key in ("predicted", "measured", "trial")),
            f"{errors[name]:+.1%}",
            f"{_above(s, 'predicted') / _above(s, 'measured') - 1:+.1%}",
        ]
        for name, s in spreads.items()
    ]
    header = (
        "training", "predicted MB", "measured MB", "trial MB", "error",
        "error of the training's part",
    )  # fmt: skip
    worst = max(map(abs, errors.values()))
    return Result(
        title="predicted and measured peak memory of a training",
        table=Table(header, rows),
        meaning=f"Predictions are at most {worst:.0%} from the measured peak.",
        method=METHOD.format(steps=STEPS, rounds=rounds, trial=TRIAL).replace("\n", " "),
    )


def _above(spreads: Mapping[str, Spread], key: str) -> float:
    """What is above the process without a model."""
    return spreads[key].median - spreads["base"].median


def _in_processes(number: int) -> dict[str, float]:
    """The plan's figures and the peak of a training, in bytes."""
    return _printed("plan", number) | _printed("train", number)


def _printed(work: str, number: int) -> dict[str, float]:
    command = [sys.executable, "-m", __name__, work, str(number)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(work: str, number: int) -> None:
    """Plan or train a shape in this process; print bytes as JSON."""
    plugins = _plugins(SHAPES[number])
    if work == "plan":
        plan = make_plan(plugins)
        assert plan.trial
        print(json.dumps({"predicted": plan.peak, "base": plan.base, "trial": plan.trial.peak}))
        return
    trainer = build_trainer(plugins, plugins.load_data())
    for state in islice(trainer.steps(), STEPS):
        assert state.step
    print(json.dumps({"measured": memory.peak()}))


def _plugins(shape: Shape) -> Plugins:
    _, vocab_size, block_size, model, train = shape
    recipe = {
        "seed": SEED,
        "dataset": {"use": "char-text"},
        "model": dict(model),
        "train": {"steps": ENDLESS, "device": "cpu", "dtype": "float32", **train},
    }
    dataset = cast(Dataset, Noises(vocab_size, block_size))
    return replace(build.build(build.read(recipe)), dataset=dataset)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
