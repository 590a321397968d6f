"""Seconds of training to several validation losses: gptkit's recipes beside nanoGPT's settings."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from pydantic import PrivateAttr

import gptkit
from benchmarks.report import ROOT, Result, Table
from benchmarks.timing import Spread
from gptkit.plugin import Callback, TrainState
from gptkit.recipe import build
from gptkit.recipe.recipe import Recipe

BASE = "tinyshakespeare-cpu"
"""nanoGPT's laptop settings."""
SEEDS = (1337, 1338, 1339)


Run = tuple[str, int]
"""A recipe and its steps."""


@dataclass(frozen=True)
class Goal:
    """A loss, the recipe that reaches it soonest, and how long nanoGPT's settings take to it."""

    loss: float
    """Nats per character over the whole validation split."""
    recipe: str
    steps: int
    """Of the recipe; its learning rate falls to zero over them."""
    base_steps: int
    """Of nanoGPT's settings, with their cosine over them."""
    seeds: Sequence[int] = SEEDS[:1]

    @property
    def own(self) -> Run:
        """The recipe's run."""
        return self.recipe, self.steps

    @property
    def base(self) -> Run:
        """The run of nanoGPT's settings."""
        return BASE, self.base_steps


GOALS = (
    Goal(1.88, "tinyshakespeare-speedrun", steps=370, base_steps=2200, seeds=SEEDS),
    Goal(1.70, "tinyshakespeare-minute", steps=465, base_steps=4550),
    Goal(1.60, "tinyshakespeare-minute", steps=1060, base_steps=8900),
    Goal(1.55, "tinyshakespeare-minute", steps=1900, base_steps=12400),
)
LOWEST = "tinyshakespeare-10min"
"""The recipe for the lowest loss, trained with the steps that it has."""
QUICK_STEPS = 4
POINTS = 5
"""Evaluations per run; the clock is stopped meanwhile."""
PICTURE = Path(__file__).with_name("time_to_loss.png")

HEADER = ("loss", "recipe", "parameters", "steps", "seconds", "its loss")
HEADER += ("nanoGPT's steps", "nanoGPT's seconds", "nanoGPT's loss", "sooner by")

METHOD = """\
Recipes as they lie in recipes/, each with the steps of the table, over which its learning rate
falls; beside them `{base}`, nanoGPT's laptop settings, with the steps that it needs for the loss,
or a > where these do not suffice. All trained by the same Trainer with their callbacks (but without
the log), float32, eager, on {threads} threads, with seed {seed}; ours to the first loss also with
two more. The clock covers every step from the first on, drawing batches included, and stands still
during evaluations, which walk the whole validation split (the last tenth of the text). {picture}"""


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


Curves = Mapping[Run, Sequence[Curve]]
"""The curves of every run, one per seed."""


def measure(quick: bool) -> Result:
    """Train for every goal, and for the lowest loss; draw the curves unless quick."""
    curves: dict[Run, list[Curve]] = {}
    lowest: Run = LOWEST, _recipe(LOWEST, []).train.steps or 0
    for goal in GOALS:
        for run, seeds in ((goal.base, SEEDS[:1]), (goal.own, goal.seeds)):
            if run not in curves:
                curves[run] = [train(*run, seed=seed, quick=quick) for seed in seeds]
    curves[lowest] = [train(*lowest, seed=SEEDS[0], quick=quick)]
    if not quick:
        _draw(curves)
    method = METHOD.format(
        base=BASE,
        seed=SEEDS[0],
        threads=torch.get_num_threads(),
        picture="" if quick else f"The curves: ![loss over seconds]({PICTURE.name})",
    )
    last = ["lowest", *_cells(lowest, curves), *"----"]
    return Result(
        title="seconds of training to a loss on Tiny Shakespeare",
        table=Table(HEADER, [*(_row(goal, curves) for goal in GOALS), last]),
        meaning=_meaning(curves, curves[lowest][0]),
        method=method.replace("\n", " ").rstrip(),
    )


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


def train(name: str, steps: int, *, seed: int, quick: bool = False) -> Curve:
    """Train a recipe with `POINTS` evaluations; quick takes few steps on the sonnets."""
    read = _recipe(name, _overrides(seed, quick))
    steps = min(steps, QUICK_STEPS) if quick else steps
    options = read.train.model_copy(update={"steps": steps, "eval_every": -(-steps // POINTS)})
    silent = tuple(spec for spec in read.callbacks if spec.use != "log")
    clock = Clock()
    recipe = read.model_copy(update={"train": options, "callbacks": silent})
    trainer = gptkit.trainer(recipe, callbacks=[clock])
    trainer.fit()
    return Curve(trainer.model.n_parameters(), steps, clock.points)


def _recipe(name: str, overrides: Sequence[str]) -> Recipe:
    return build.read(ROOT / "recipes" / f"{name}.toml", list(overrides))


def _overrides(seed: int, quick: bool) -> list[str]:
    """What the benchmark changes in a recipe: seed, device and the path of the text."""
    overrides = [f"seed={seed}", "train.device=cpu", "train.dtype=float32"]
    if quick:
        return [*overrides, "train.eval_batches=1", "dataset.source=sonnets"]
    if folder := os.environ.get("GPTKIT_TEST_DATA"):  # else it is downloaded
        text = Path(folder).resolve() / "tinyshakespeare.txt"
        overrides.append(f"dataset.path={text}")
    return overrides


def _row(goal: Goal, curves: Curves) -> list[str]:
    _, *base = _cells(goal.base, curves)
    ratio = f"{_mark(goal, curves)}{_ratio(goal, curves):.1f}"
    return [f"{goal.loss:.2f}", *_cells(goal.own, curves), *base[1:], ratio]


def _cells(run: Run, curves: Curves) -> list[str]:
    """Name, parameters, steps, seconds and loss."""
    found = curves[run]
    seconds = Spread([curve.seconds for curve in found])
    losses = Spread([curve.loss for curve in found])
    sizes = [f"{found[0].parameters:,}", f"{found[0].steps:,}"]
    return [f"`{run[0]}`", *sizes, seconds.show(1), losses.show(3)]


def _ratio(goal: Goal, curves: Curves) -> float:
    own, base = (Spread([c.seconds for c in curves[run]]) for run in (goal.own, goal.base))
    return base.median / own.median


def _mark(goal: Goal, curves: Curves) -> str:
    """Before a ratio: nanoGPT's settings would take longer still, or never reach the loss."""
    return "" if curves[goal.base][0].loss <= goal.loss else "> "


def _meaning(curves: Curves, lowest: Curve) -> str:
    words = []
    for goal in GOALS:
        reached = sum(curve.loss <= goal.loss for curve in curves[goal.own])
        more = "more than " if _mark(goal, curves) else ""
        words.append(
            f"{goal.loss:.2f} {more}{_ratio(goal, curves):.1f} times sooner "
            f"({reached} of {len(curves[goal.own])} seeds)"
        )
    return (
        f"The recipes reach {', '.join(words)} than nanoGPT's settings; the lowest loss is "
        f"{lowest.loss:.3f} after {lowest.seconds / 60:.1f} minutes of training."
    )


def _draw(curves: Curves) -> None:
    """All curves in one picture; seconds are logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(name for name, _ in curves))
    for i, name in enumerate(names):
        color = "tab:gray" if name == BASE else f"C{i}"
        found = [curve for run in curves if run[0] == name for curve in curves[run]]
        for j, curve in enumerate(found):
            label = None if j else name
            axes.plot(*zip(*curve.points, strict=True), ".-", color=color, label=label, alpha=0.7)
    for goal in GOALS:
        axes.axhline(goal.loss, color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", ylim=(1.4, 2.6), ylabel="validation loss, nats per character")
    axes.set(xlabel=f"seconds of training, {torch.get_num_threads()} threads")
    axes.legend()
    figure.savefig(PICTURE, dpi=110)
