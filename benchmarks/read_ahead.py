"""What a slow data set costs a training step, with and without reading one batch ahead."""

from collections.abc import Callable
from time import sleep
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import VOCABULARY, Shape, threads
from benchmarks.report import Result, Table
from benchmarks.timing import Spread, take_turns, timed
from benchmarks.training import make_trainer
from gptkit.plugin import Split
from gptkit.training.reader import Reader
from gptkit.training.trainer import Trainer

SHAPE = Shape(4, 4, 128, 64, 12)
SLOW = 0.020
"""Seconds that a slow split takes for a batch."""
ROUNDS = 100
SEED = 1

METHOD = """\
The trainer on one thread of two cores, {shape}, float32, AdamW, in one process, in turns (rounds:
{rounds} of one step each). The splits make random tokens. The slow ones take {slow} ms a batch, as
measured alone: one waits, as for a disk or a network; one sorts in numpy, which lets other threads
run; one counts in Python, which holds the interpreter's lock. Both need a core of their own to be
hidden, which other programs may take. "Without" is the same trainer, which
asks for a batch only when it needs it. The costs are differences between fastest steps, since the
other steps also wait for other programs."""


class Tokens(Split):
    """Random tokens after some work."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work
        self._tokens = torch.randint(VOCABULARY, (1000, SHAPE.block_size + 1))

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        self.work()
        rows = self._tokens[indices]
        return rows[:, :-1], rows[:, 1:]


class OnDemand(Reader):
    """Reads a batch when it is asked for, and none ahead."""

    def read(self, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """In this thread."""
        return self.data.train[self.data.train.indices(self.seed, step, batch_size)]

    def read_ahead(self, step: int, batch_size: int) -> None:
        """Nothing."""


def measure(quick: bool) -> Result:
    """Every split with and without reading ahead."""
    rounds = 1 if quick else ROUNDS
    with threads(1):
        works = {
            "fast": lambda: None,
            "waits": lambda: sleep(SLOW),
            "computes in numpy": _repeat(_sort),
            "computes in Python": _repeat(_count),
        }
        contestants = {
            (name, ahead): timed(_trainer(work, ahead=ahead).step)
            for name, work in works.items()
            for ahead in (True, False)
        }
        runs = take_turns(contestants, rounds=rounds, warmup=0 if quick else 1)
    times = {key: Spread(values) for key, values in runs.items()}
    header = ("split", "ms a step, read ahead", "ms a step, without", "cost of 20 ms", "without")
    return Result(
        title="what a slow data set costs a training step",
        table=Table(header, [_row(name, times) for name in works]),
        meaning=_meaning(times),
        method=METHOD.format(shape=SHAPE, rounds=rounds, slow=round(SLOW * 1e3)).replace("\n", " "),
    )


def _trainer(work: Callable[[], object], *, ahead: bool) -> Trainer:
    split = Tokens(work)
    trainer = make_trainer(
        split,
        vocab_size=VOCABULARY,
        block_size=SHAPE.block_size,
        model=SHAPE.model,
        train={"batch_size": SHAPE.batch_size},
    )
    if not ahead:
        trainer.reader = OnDemand(trainer.data, seed=SEED, name="slow")
    return trainer


def _repeat(work: Callable[[], object]) -> Callable[[], None]:
    """Does some work as often as takes 20 ms when nothing else runs."""
    once = min(timed(work, 10)() for _ in range(10))
    count = max(1, round(SLOW / once))

    def repeated() -> None:
        for _ in range(count):
            work()

    return repeated


def _sort() -> None:
    np.sort(np.arange(20_000)[::-1] % 997)


def _count() -> None:
    for _ in range(10_000):
        pass


def _cost(times: dict[Any, Spread], name: str, *, ahead: bool) -> float:
    """Milliseconds that the fastest step takes more than with the fast split."""
    return (min(times[name, ahead].values) - min(times["fast", ahead].values)) * 1e3


def _row(name: str, times: dict[Any, Spread]) -> list[str]:
    both = (True, False)
    costs = ["-" if name == "fast" else f"{_cost(times, name, ahead=a):.1f}" for a in both]
    return [name, *(times[name, a].show(1, unit=1e-3) for a in both), *costs]


def _meaning(times: dict[Any, Spread]) -> str:
    step = min(times["fast", True].values) * 1e3
    waits, without = (_cost(times, "waits", ahead=a) for a in (True, False))
    computes = _cost(times, "computes in Python", ahead=True)
    return (
        f"A split that waits 20 ms for a batch makes a step of {step:.0f} ms longer by "
        f"{waits:.1f} ms when it is read ahead, by {without:.1f} ms when it is not; one that "
        f"computes for 20 ms in Python, by {computes:.1f} ms."
    )
