"""One training step of gptkit's Trainer beside nanoGPT's arithmetic and other libraries."""

import itertools
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
from benchmarks.nanogpt import NanoGPT, Training
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
from gptkit.recipe.sizes import flops_per_token
from gptkit.training import allocator
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
UNBIASED, NANO = "gptkit without biases", "nanoGPT"

METHOD = """\
One step is forward, backward, clipping to norm 1 and AdamW, in float32, eager, without dropout,
over a vocabulary of 65. Both start from the same weights (parameter counts and first losses are
checked to be equal, the latter near ln 65) and see the same batches; gptkit's time includes drawing
its batch from a file and looking for losses and gradients that are not finite, transformers gets
its batches for nothing. transformers runs at its fastest: `attn_implementation="sdpa"`, no cache,
fused AdamW, and the exact GELU, as gptkit; "by default" is it with its `gelu_new` and with torch's
AdamW as it comes, not fused. "nanoGPT" is its arithmetic, written out in benchmarks/nanogpt.py: no
biases, torch's AdamW as it comes; beside it is gptkit without biases, with
the same weights, and the ratio of the two. gptkit keeps freed memory, as its training does; that
holds for the whole process, so for all contestants. litgpt
(rotary, head not tied) and x-transformers have the same sizes and fused AdamW, where installed.
The contestants take turns (rounds: {rounds}); the ratio is the median over rounds of transformers'
time by gptkit's. FLOP/s count 6 N + 12 L C T per token (N parameters but the position table's,
L layers, C width, T context, the causal half of attention not subtracted), by the median; the peak
is the best {matmul} x {matmul} float32 matmul seen in the same rounds on the same threads."""


def measure(quick: bool) -> Result:
    """Every shape with every number of threads."""
    matmul = 512 if quick else 2048
    rows, ratios, nano = [], [], []
    for shape, rounds in SHAPES.items():
        for number in THREADS:
            with threads(number), _contestants(shape, matmul) as contestants:
                runs = take_turns(
                    contestants, rounds=1 if quick else rounds, warmup=0 if quick else 1
                )
            times = {name: Spread(values) for name, values in runs.items()}
            ratios.append(times[THEIRS].over(times[OURS]).median)
            nano.append(times[NANO].over(times[UNBIASED]).median)
            rows.append(_row(shape, number, times, 2 * matmul**3))
    header = (
        "shape", "threads", "gptkit without biases ms", "nanoGPT ms", "ratio to nanoGPT",
        "gptkit ms", "transformers ms", "ratio", "by default ms",
        "ratio by default", *(f"{name} ms" for name in OTHERS),
        "gptkit tokens/s", "transformers tokens/s", "gptkit of peak", "transformers of peak",
        "peak GFLOP/s",
    )  # fmt: skip
    rounds_text = "1" if quick else " and ".join(map(str, SHAPES.values()))
    return Result(
        title="one training step beside nanoGPT's arithmetic and transformers' GPT2LMHeadModel",
        table=Table(header, rows),
        meaning=f"{_meaning(NANO, nano)} {_meaning(THEIRS, ratios)}",
        method=METHOD.format(rounds=rounds_text, matmul=matmul).replace("\n", " "),
    )


@contextmanager
def _contestants(shape: Shape, matmul: int) -> Iterator[dict[str, Callable[[], float]]]:
    """Functions by name, each of which takes a step and returns its seconds."""
    calls = CALLS.get(shape, 1)
    settled = allocator.for_training(torch.device("cpu"), sharded=False)
    with settled, tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(shape, Path(folder) / "tokens.bin")
        unbiased = _trainer(shape, Path(folder) / "tokens.bin", bias=False)
        nano = Training(NanoGPT.of(unbiased.model), learning_rate=LEARNING_RATE)
        ours = trainer.model
        theirs, default = make_theirs(ours), make_theirs(ours, activation="gelu_new")
        batches = _Batches(trainer.data, shape.batch_size)
        check_equal(ours, theirs, *batches.of(0))
        _check_nano(unbiased.model, nano.model, *batches.of(0))
        a = torch.rand(matmul, matmul)
        yield {
            UNBIASED: timed(unbiased.step, calls),
            NANO: _timed_peer(nano, batches, calls),
            OURS: timed(trainer.step, calls),
            THEIRS: _timed_peer(_Peer(theirs, _loss_of(theirs)), batches, calls),
            DEFAULT: _timed_peer(_Peer(default, _loss_of(default), fused=None), batches, calls),
            **{
                name: _timed_peer(_Peer(model, loss), batches, calls)
                for name, (model, loss) in others(shape).items()
            },
            MATMUL: timed(partial(torch.mm, a, a)),
        }


def _check_nano(ours: nn.Module, theirs: nn.Module, x: Tensor, y: Tensor) -> None:
    """Raise a RuntimeError if the two have different losses."""
    with torch.no_grad():
        losses = ours(x, y).item(), theirs(x, y).item()
    if abs(losses[0] - losses[1]) > 1e-4:
        raise RuntimeError(f"not the same model: losses {losses}")


def _trainer(shape: Shape, path: Path, *, bias: bool = True) -> Trainer:
    """A Trainer on random tokens, as a recipe with grad-clip makes it."""
    tokens = np.random.default_rng(SEED).integers(VOCABULARY, size=TOKENS, dtype=np.uint8)
    tokens.tofile(path)
    optimizer = {"use": "adamw", "learning_rate": LEARNING_RATE}
    return make_trainer(
        TokenFile(path, "uint8", stop=TOKENS, block_size=shape.block_size),
        vocab_size=VOCABULARY,
        block_size=shape.block_size,
        model={**shape.model, "bias": bias},
        train={"batch_size": shape.batch_size, "dtype": "float32", "optimizer": optimizer},
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

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(x, y).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.optimizer.step()


def _timed_peer(peer: _Peer | Training, batches: _Batches, calls: int) -> Callable[[], float]:
    """Seconds of a step; the batches are there before the clock starts."""
    steps = itertools.count()

    def seconds() -> float:
        ready = iter([batches.of(next(steps)) for _ in range(calls)])
        return timed(lambda: peer.step(*next(ready)), calls)()

    return seconds


def _row(shape: Shape, number: int, times: dict[str, Spread], matmul_flops: int) -> list[str]:
    peak = matmul_flops / min(times[MATMUL].values)
    flops = _flops(shape)
    return [
        str(shape),
        str(number),
        times[UNBIASED].show(1, unit=1e-3),
        times[NANO].show(1, unit=1e-3),
        times[NANO].over(times[UNBIASED]).show(2),
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
    return flops_per_token(make_ours(shape).config) * shape.tokens


def _meaning(peer: str, ratios: list[float]) -> str:
    low, high = min(ratios), max(ratios)
    if low >= 1:
        return f"{peer} takes {low:.2f} to {high:.2f} times as long as gptkit for a step."
    if high <= 1:
        return f"gptkit takes {1 / high:.2f} to {1 / low:.2f} times as long as {peer}."
    return f"Neither is always faster: {peer} takes {low:.2f} to {high:.2f} of gptkit's time."
