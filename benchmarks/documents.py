"""What it costs a training step that the documents in a window do not see each other."""

import torch
from torch import Tensor

from benchmarks.peers import VOCABULARY, Shape, threads
from benchmarks.report import Result, Table
from benchmarks.timing import Spread, take_turns, timed
from benchmarks.training import make_trainer
from gptkit.plugin import Split
from gptkit.training.trainer import Trainer

SHAPES = {Shape(4, 4, 128, 64, 12): 60, Shape(8, 8, 256, 256, 8): 12, Shape(4, 4, 128, 1024, 2): 20}
"""With the rounds of each."""
START = 0
LENGTH = 100
"""Tokens of a document, on average."""

METHOD = """\
The trainer on one thread, float32, AdamW, a vocabulary of {vocabulary}, in one process, in turns
(rounds: {rounds} of one step each). The tokens are random; about one in {length} begins a document.
"Alone" trains each document as if it were alone: attention sees only its own tokens, and positions
count from its beginning. The cost is the median over the rounds."""


class Documents(Split):
    """Windows of random tokens, some of which begin a document."""

    def __init__(self, block_size: int) -> None:
        generator = torch.Generator().manual_seed(1)
        shape = (200, block_size + 1)
        tokens = torch.randint(1, VOCABULARY, shape, generator=generator)
        begins = torch.rand(shape, generator=generator) < 1 / LENGTH
        self._tokens = tokens.masked_fill(begins, START)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        rows = self._tokens[indices]
        return rows[:, :-1], rows[:, 1:]


def measure(quick: bool) -> Result:
    """Each shape, with learned and with rotary positions."""
    rows, costs = [], []
    with threads(1):
        for shape, rounds in SHAPES.items():
            for position in ("learned", "rotary"):
                contestants = {
                    alone: timed(_trainer(shape, position, alone=alone).step)
                    for alone in (False, True)
                }
                runs = take_turns(contestants, rounds=1 if quick else rounds)
                plain, alone = Spread(runs[False]), Spread(runs[True])
                cost = Spread([100 * (ratio - 1) for ratio in alone.over(plain).values])
                costs.append(cost.median)
                times = (each.show(1, unit=1e-3) for each in (plain, alone))
                rows.append([f"{shape}, {position}", *times, cost.show(1)])
    return Result(
        title="what a step costs in which every document is alone",
        table=Table(("model", "ms a step", "ms a step, alone", "cost, %"), rows),
        meaning=f"A step takes {min(costs):.1f} to {max(costs):.1f} % longer where every document "
        "is trained as if it were alone.",
        method=METHOD.format(
            vocabulary=VOCABULARY, length=LENGTH, rounds=", ".join(map(str, SHAPES.values()))
        ).replace("\n", " "),
    )


def _trainer(shape: Shape, position: str, *, alone: bool) -> Trainer:
    return make_trainer(
        Documents(shape.block_size),
        vocab_size=VOCABULARY,
        block_size=shape.block_size,
        model=shape.model | {"position": position},
        train={"batch_size": shape.batch_size},
        document_start=START if alone else None,
    )
