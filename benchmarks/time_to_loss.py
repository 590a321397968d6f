"""Seconds of training to a validation loss: the speedrun recipe beside nanoGPT's settings."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from pydantic import PrivateAttr

import gptkit
from benchmarks.report import ROOT, Result, Table
from benchmarks.timing import Spread, take_turns
from gptkit.plugin import Callback, TrainState
from gptkit.recipe import build

BASE, FAST = "tinyshakespeare-cpu", "tinyshakespeare-speedrun"
AIM = 1.88
"""Nats per character over the whole validation split: what nanoGPT's README reports."""
SEEDS, QUICK_SEEDS = (1337, 1338, 1339), (1337,)
QUICK_STEPS = 4
POINTS = 8
"""Evaluations per run; the clock is stopped meanwhile."""
PICTURE = Path(__file__).with_name("time_to_loss.png")

METHOD = """\
Both recipes as they lie in recipes/, trained by the same Trainer with their callbacks (but without
the log), float32, eager, on {threads} threads, with seeds {seeds}, in turns. The clock covers every
step from the first on, drawing batches included, and stands still during evaluations, which walk
the whole validation split (the last tenth of the text). The ratio is the median over seeds of the
first recipe's seconds by the second's. {picture}"""


@dataclass(frozen=True)
class Curve:
    """A run's validation losses over its seconds of training."""

    parameters: int
    steps: int
    points: Sequence[tuple[float, float]]
    """(seconds, nats per character), the last one at the end of training."""

    @property
    def seconds(self) -> float:
        """Seconds of the whole training."""
        return self.points[-1][0]

    @property
    def loss(self) -> float:
        """The validation loss at the end."""
        return self.points[-1][1]


def measure(quick: bool) -> Result:
    """Train both with every seed; draw their curves unless quick."""
    seeds = QUICK_SEEDS if quick else SEEDS
    contestants: dict[str, Callable[[], Curve]] = {
        name: partial(_next, name, iter(seeds), quick) for name in (BASE, FAST)
    }
    runs = take_turns(contestants, rounds=len(seeds), warmup=0)
    if not quick:
        _draw(runs)
    method = METHOD.format(
        threads=torch.get_num_threads(),
        seeds=", ".join(map(str, seeds)),
        picture="" if quick else f"The curves: ![loss over seconds]({PICTURE.name})",
    )
    header = ("recipe", "parameters", "steps", "seconds", "validation loss", "ms per step")
    return Result(
        title="seconds of training to nanoGPT's loss on Tiny Shakespeare",
        table=Table(header, [_row(name, curves) for name, curves in runs.items()]),
        meaning=_meaning(runs[BASE], runs[FAST]),
        method=method.replace("\n", " ").rstrip(),
    )


def _next(name: str, seeds: Iterator[int], quick: bool) -> Curve:
    return train(name, next(seeds), quick=quick)


class Clock(Callback):
    """Times the steps alone, and notes the validation loss at each evaluation."""

    _begin: float = 0.0
    _seconds: float = 0.0
    _points: list[tuple[float, float]] = PrivateAttr(default_factory=list)

    def on_step_start(self, state: TrainState) -> None:
        """Start the clock."""
        self._begin = perf_counter()

    def on_step_end(self, state: TrainState) -> None:
        """Stop the clock."""
        self._seconds += perf_counter() - self._begin

    def on_eval_end(self, state: TrainState) -> None:
        """Note a point of the curve."""
        self._points.append((self._seconds, state.val_loss or math.nan))

    @property
    def points(self) -> list[tuple[float, float]]:
        """Seconds and validation losses."""
        return self._points


def train(name: str, seed: int, *, quick: bool = False) -> Curve:
    """Train a recipe with `POINTS` evaluations; quick takes few steps on the sonnets."""
    read = build.read(ROOT / "recipes" / f"{name}.toml", _overrides(seed, quick))
    options = read.train.model_copy(update={"eval_every": -(-read.train.steps // POINTS)})
    silent = tuple(spec for spec in read.callbacks if spec.use != "log")
    clock = Clock()
    recipe = read.model_copy(update={"train": options, "callbacks": silent})
    trainer = gptkit.trainer(recipe, callbacks=[clock])
    trainer.fit()
    return Curve(trainer.model.n_parameters(), options.steps, clock.points)


def _overrides(seed: int, quick: bool) -> list[str]:
    """What the benchmark changes in a recipe: seed, device and the path of the text."""
    overrides = [f"seed={seed}", "train.device=cpu"]
    if quick:
        steps = [f"train.steps={QUICK_STEPS}", "train.eval_batches=1"]
        return [*overrides, *steps, "dataset.source=sonnets"]
    if folder := os.environ.get("GPTKIT_TEST_DATA"):  # else it is downloaded
        text = Path(folder).resolve() / "tinyshakespeare.txt"
        overrides.append(f"dataset.path={text}")
    return overrides


def _row(name: str, curves: Sequence[Curve]) -> list[str]:
    seconds = Spread([curve.seconds for curve in curves])
    return [
        f"`{name}`",
        f"{curves[0].parameters:,}",
        f"{curves[0].steps:,}",
        seconds.show(2),
        Spread([curve.loss for curve in curves]).show(4),
        Spread([curve.seconds / curve.steps for curve in curves]).show(1, unit=1e-3),
    ]


def _meaning(base: Sequence[Curve], fast: Sequence[Curve]) -> str:
    ratio = Spread([b.seconds for b in base]).over(Spread([f.seconds for f in fast]))
    reached = sum(curve.loss <= AIM for curve in fast)
    return (
        f"The speedrun takes 1/{ratio.median:.1f} (1/{min(ratio.values):.1f} to "
        f"1/{max(ratio.values):.1f}) of the time of nanoGPT's settings, and {reached} of "
        f"{len(fast)} seeds reach {AIM}; of nanoGPT's settings "
        f"{sum(curve.loss <= AIM for curve in base)} do."
    )


def _draw(runs: dict[str, list[Curve]]) -> None:
    """All curves in one picture; seconds are logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for color, (name, curves) in zip(("tab:gray", "tab:blue"), runs.items(), strict=True):
        for i, curve in enumerate(curves):
            label = name if i == 0 else None
            axes.plot(*zip(*curve.points, strict=True), ".-", color=color, label=label, alpha=0.7)
    axes.axhline(AIM, color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", ylim=(1.8, 2.6), xlabel="seconds of training, 2 cores")
    axes.set(ylabel="validation loss, nats per character")
    axes.legend()
    figure.savefig(PICTURE, dpi=110)
