"""One training step of gptkit's Trainer beside transformers' GPT-2 with torch's AdamW."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from benchmarks.gpt_peers import Loss, others
from benchmarks.peers import (
    THREADS,
    VOCABULARY,
    Shape,
    check_equal,
    make_ours,
    make_theirs,
    threads,
)
from benchmarks.report import Result, Table
from benchmarks.timing import Spread, take_turns, timed
from benchmarks.training import make_trainer
from gptkit.plugin import Data, TokenFile
from gptkit.training.trainer import Trainer
from gptkit_grad_clip import GradClip

SHAPES = {Shape(4, 4, 128, 64, 12): 40, Shape(8, 8, 256, 128, 16): 12}
"""What is trained, and in how many rounds."""
CALLS = {Shape(4, 4, 128, 64, 12): 5}
"""Steps in a row per round, if not 1."""
SEED = 1
TOKENS = 1_000_000
MAX_NORM = 1.0
LEARNING_RATE = 1e-3

OTHERS = ("litgpt", "x-transformers")
OURS, THEIRS, DEFAULT, MATMUL = "gptkit", "transformers", "by default", "matmul"

METHOD = """\
One step is forward, backward, clipping to norm 1 and AdamW, in float32, eager, without dropout,
over a vocabulary of 65. Both start from the same weights (parameter counts and first losses are
checked to be equal, the latter near ln 65) and see the same batches; gptkit's time includes drawing
its batch from a file and looking for losses and gradients that are not finite, transformers gets
its batches for nothing. transformers runs at its fastest: `attn_implementation="sdpa"`, no cache,
fused AdamW, and `gelu_pytorch_tanh` in place of its default `gelu_new`, which is the same function;
"by default" is it with `gelu_new` and with torch's AdamW as it comes, which is not fused. litgpt
(rotary, head not tied) and x-transformers have the same sizes and fused AdamW, where installed.
The contestants take turns (rounds: {rounds}); the ratio is the median over rounds of transformers'
time by gptkit's. FLOP/s count 6 N + 12 L C T per token (N parameters but the position table's,
L layers, C width, T context, the causal half of attention not subtracted), by the median; the peak
is the best {matmul} x {matmul} float32 matmul seen in the same rounds on the same threads."""


def measure(quick: bool) -> Result:
    """Every shape with every number of threads."""
    matmul = 512 if quick else 2048
    rows, ratios = [], []
    for shape, rounds in SHAPES.items():
        for number in THREADS:
            with threads(number), _contestants(shape, matmul) as contestants:
                runs = take_turns(
                    contestants, rounds=1 if quick else rounds, warmup=0 if quick else 1
                )
            times = {name: Spread(values) for name, values in runs.items()}
            ratios.append(times[THEIRS].over(times[OURS]).median)
            rows.append(_row(shape, number, times, 2 * matmul**3))
    header = (
        "shape", "threads", "gptkit ms", "transformers ms", "ratio", "by default ms",
        "ratio by default", *(f"{name} ms" for name in OTHERS),
        "gptkit tokens/s", "transformers tokens/s", "gptkit of peak", "transformers of peak",
        "peak GFLOP/s",
    )  # fmt: skip
    rounds_text = "1" if quick else " and ".join(map(str, SHAPES.values()))
    return Result(
        title="one training step beside transformers' GPT2LMHeadModel",
        table=Table(header, rows),
        meaning=_meaning(ratios),
        method=METHOD.format(rounds=rounds_text, matmul=matmul).replace("\n", " "),
    )


@contextmanager
def _contestants(shape: Shape, matmul: int) -> Iterator[dict[str, Callable[[], float]]]:
    """Functions by name, each of which takes a step and returns its seconds."""
    calls = CALLS.get(shape, 1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(shape, Path(folder) / "tokens.bin")
        ours = trainer.model
        theirs, default = make_theirs(ours), make_theirs(ours, activation="gelu_new")
        batches = _Batches(trainer.data, shape.batch_size)
        check_equal(ours, theirs, *batches.of(0))
        a = torch.rand(matmul, matmul)
        yield {
            OURS: timed(trainer.step, calls),
            THEIRS: _timed_peer(_Peer(theirs, _loss_of(theirs)), batches, calls),
            DEFAULT: _timed_peer(_Peer(default, _loss_of(default), fused=None), batches, calls),
            **{
                name: _timed_peer(_Peer(model, loss), batches, calls)
                for name, (model, loss) in others(shape).items()
            },
            MATMUL: timed(partial(torch.mm, a, a)),
        }


def _trainer(shape: Shape, path: Path) -> Trainer:
    """A Trainer on random tokens, as a recipe with grad-clip makes it."""
    tokens = np.random.default_rng(SEED).integers(VOCABULARY, size=TOKENS, dtype=np.uint8)
    tokens.tofile(path)
    optimizer = {"use": "adamw", "learning_rate": LEARNING_RATE}
    return make_trainer(
        TokenFile(path, "uint8", stop=TOKENS, block_size=shape.block_size),
        vocab_size=VOCABULARY,
        block_size=shape.block_size,
        model=shape.model,
        train={"batch_size": shape.batch_size, "optimizer": optimizer},
        callbacks=[GradClip(max_norm=MAX_NORM)],
    )


class _Batches:
    """The batches that the Trainer draws, ready in memory."""

    def __init__(self, data: Data, batch_size: int) -> None:
        self._data, self._batch_size = data, batch_size

    def of(self, step: int) -> tuple[Tensor, Tensor]:
        split = self._data.train
        return split[split.indices(SEED, step, self._batch_size)]


def _loss_of(model: GPT2LMHeadModel) -> Loss:
    return lambda x, y: model(x, labels=x, shift_labels=y, use_cache=False).loss


class _Peer:
    """Another library's model and torch's AdamW, written as its users write it."""

    def __init__(self, model: nn.Module, loss: Loss, *, fused: bool | None = True) -> None:
        self.model, self.loss = model.train(), loss
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=fused
        )
        self.steps = 0

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(x, y).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.optimizer.step()
        self.steps += 1


def _timed_peer(peer: _Peer, batches: _Batches, calls: int) -> Callable[[], float]:
    """Seconds of a step; the batches are there before the clock starts."""

    def seconds() -> float:
        ready = iter([batches.of(peer.steps + i) for i in range(calls)])
        return timed(lambda: peer.step(*next(ready)), calls)()

    return seconds


def _row(shape: Shape, number: int, times: dict[str, Spread], matmul_flops: int) -> list[str]:
    peak = matmul_flops / min(times[MATMUL].values)
    flops = _flops(shape)
    return [
        str(shape),
        str(number),
        times[OURS].show(1, unit=1e-3),
        times[THEIRS].show(1, unit=1e-3),
        times[THEIRS].over(times[OURS]).show(2),
        times[DEFAULT].show(1, unit=1e-3),
        times[DEFAULT].over(times[OURS]).show(2),
        *(times[name].show(1, unit=1e-3) if name in times else "-" for name in OTHERS),
        f"{shape.tokens / times[OURS].median:,.0f}",
        f"{shape.tokens / times[THEIRS].median:,.0f}",
        f"{flops / times[OURS].median / peak:.0%}",
        f"{flops / times[THEIRS].median / peak:.0%}",
        f"{peak / 1e9:.0f}",
    ]


def _flops(shape: Shape) -> int:
    """FLOPs of one step, after Chowdhery et al. 2022 (PaLM), appendix B."""
    model = make_ours(shape)
    weights = model.n_parameters() - shape.block_size * shape.n_embd
    attention = 12 * shape.n_layer * shape.n_embd * shape.block_size
    return (6 * weights + attention) * shape.tokens


def _meaning(ratios: list[float]) -> str:
    low, high = min(ratios), max(ratios)
    if low >= 1:
        return f"transformers takes {low:.2f} to {high:.2f} times as long as gptkit for a step."
    if high <= 1:
        return f"gptkit takes {1 / high:.2f} to {1 / low:.2f} times as long as transformers."
    return f"Neither is always faster: transformers takes {low:.2f} to {high:.2f} of gptkit's time."
