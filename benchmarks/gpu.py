"""One GPU in ten minutes: correctness first, then training, time to a loss, and sampling.

A part that fails is reported in its row, and the next one goes on.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

import gptkit
from benchmarks.gpu_sampling import sampling
from benchmarks.nanogpt import NanoGPT, Training
from benchmarks.parts import Parts, Row, seconds, take_parts
from benchmarks.report import Result, Table
from benchmarks.timing import Spread
from benchmarks.training import make_trainer
from gptkit.plugin import Callback, Split, TrainState
from gptkit.recipe import build
from gptkit.recipe.options import PRESETS, GPTConfig, TrainOptions
from gptkit.training.device import RunDevice, resolve_device
from gptkit.training.trainer import Trainer
from gptkit.training.usage import Usage

TARGET = 1.4697
"""nanoGPT's figure for its baby GPT, in nats per character."""
CLOSE = 0.05
"""How far the loss after a few steps on the device may be from the CPU's in float32."""
CHECKED_STEPS = 20
DOCUMENT = 500
"""Tokens of a document, on average, where each is trained as if it were alone."""
START = 0
"""The token that begins a document."""
LONGEST = 150.0
"""Limit in seconds for the tests, and for training to the target loss."""
LIMIT = 540.0
"""Seconds after which no further part is begun."""
TESTS = [f"tests/test_{name}.py" for name in ("device", "finite", "generate", "model")]
"""Files with tests that have the mark `gpu`."""

METHOD = """\
{device}, torch {torch}; {seconds:.0f} s in all. Correctness: the tests that need a GPU, then a
small model, trained for {steps} steps from one seed on the CPU in float32 and on the device as
`auto` chooses. Training: GPT-2 of 124 M parameters with the exact GELU and without biases, {batch}
x {block} random tokens an update, AdamW; the trainer as `gptkit train` runs it, and nanoGPT's
arithmetic, written out in `benchmarks/nanogpt.py`, in the same precision, compiled if gptkit
compiles, with its batch on the device before; "alone" are documents of about {document} tokens
that do not see each other. MFU is 6 N + 12 L C T FLOPs a token (N without the
position table) over the dense bfloat16 peak that the maker names, or over a matrix product measured
here. Sampling: 6L 6H 384, T 256, one sequence from one token; the limit is one pass over the
weights for each token, at the speed of copying. Without a GPU all of it runs in miniature on the
CPU."""


@dataclass(frozen=True)
class Scale:
    """Sizes of all parts; small without a GPU, to see that they run."""

    model: dict[str, Any]
    vocab_size: int
    block_size: int
    batch_size: int
    steps: int
    warmup: int
    tokens: int
    copied: int


FULL = Scale(PRESETS["gpt2"] | {"mlp": "gelu"}, 50304, 1024, 32, 20, 8, 200, 1 << 30)
SMALL = Scale({"n_layer": 2, "n_head": 2, "n_embd": 32}, 65, 32, 4, 3, 1, 8, 1 << 22)


class Noise(Split):
    """Windows of random tokens, some of which begin a document."""

    def __init__(self, vocab_size: int, block_size: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.vocab_size, self.stride = vocab_size, block_size
        tokens = torch.randint(START + 1, vocab_size, (1 << 22,), generator=generator)
        tokens[torch.rand(tokens.shape, generator=generator) < 1 / DOCUMENT] = START
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens) - self.stride

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        rows = self._tokens[indices[:, None] + torch.arange(self.stride + 1)]
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def measure(quick: bool) -> Result:
    """Run all parts; without a GPU at small sizes on the CPU."""
    cuda = torch.cuda.is_available()
    scale = FULL if cuda and not quick else SMALL
    begin = perf_counter()
    parts: Parts = {
        "tests that need a GPU": run_tests,
        "losses on the CPU and on the device": check_device,
        "training, gptkit, tokens/s": partial(train, scale),
        "training, gptkit, each document alone, tokens/s": partial(train, scale, alone=True),
        "training, nanoGPT's arithmetic, tokens/s": partial(train_nanogpt, scale),
        f"baby GPT to a validation loss of {TARGET}": partial(time_to_loss, quick or not cuda),
        "sampling": partial(sampling, scale.tokens, scale.copied),
    }
    rows = list(take_parts(parts, until=begin + LIMIT))
    device = torch.cuda.get_device_name() if cuda else "no GPU"
    figures = {name: figure for name, figure, _ in rows}
    return Result(
        title="training and sampling on one GPU",
        table=Table(("what", "figure", "limit"), rows),
        meaning=f"{device}: GPT-2 trains at {figures['training, gptkit, tokens/s']} tokens/s.",
        method=METHOD.format(
            device=device, torch=torch.__version__, steps=CHECKED_STEPS, batch=scale.batch_size,
            block=scale.block_size, document=DOCUMENT, seconds=perf_counter() - begin,
        ).replace("\n", " "),
    )  # fmt: skip


def run_tests() -> Iterator[Row]:
    """The suite's tests that need a GPU, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-m", "gpu", *TESTS]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=LONGEST, check=False
    )
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr).strip().splitlines()[-1])
    yield ["", done.stdout.strip().splitlines()[-1], "no failure"]


def check_device() -> Iterator[Row]:
    """Train a little on the CPU and on the device.

    Raises:
        RuntimeError: the losses are further apart than precision explains.
    """
    losses = []
    for device, dtype in (("cpu", "float32"), ("auto", "auto")):
        options = {"batch_size": 8, "device": device, "dtype": dtype, "compile": False}
        trainer = _trainer(SMALL, options)
        for _ in range(CHECKED_STEPS):
            trainer.step()
        losses.append(float(trainer.state.loss))
    if abs(losses[0] - losses[1]) > CLOSE:
        raise RuntimeError(f"the device trains differently: losses {losses}")
    yield ["", " and ".join(f"{loss:.4f}" for loss in losses), f"{CLOSE} apart"]


def train(scale: Scale, *, alone: bool = False) -> Iterator[Row]:
    """Tokens per second of `Trainer.step`, as the recipe's "auto" settings run it."""
    options = {"batch_size": scale.batch_size, "device": "auto"}
    trainer = _trainer(scale, options, document_start=START if alone else None)
    yield _training_row(scale, trainer.step, trainer.run_device)


def train_nanogpt(scale: Scale) -> Iterator[Row]:
    """Tokens per second of nanoGPT's arithmetic on the same device, in the same precision."""
    run_device = resolve_device(TrainOptions())
    model = NanoGPT(_config(scale)).to(run_device.device)
    training = Training(torch.compile(model) if run_device.compile else model, learning_rate=6e-4)
    indices = torch.arange(scale.batch_size) * scale.block_size
    x, y = map(run_device.put, Noise(scale.vocab_size, scale.block_size)[indices])

    def step() -> None:
        with run_device.autocast():
            training.step(x, y)

    yield _training_row(scale, step, run_device)


def _training_row(scale: Scale, step: Callable[[], object], run_device: RunDevice) -> Row:
    for _ in range(scale.warmup):
        step()
    took = [seconds(lambda: [step() for _ in range(scale.steps)]) for _ in range(3)]
    rate = Spread([each / scale.steps for each in took]).per(scale.batch_size * scale.block_size)
    usage = Usage(_config(scale), run_device)
    share = f"{usage.share(rate.median):.1%} MFU of {usage.peak / 1e12:.3g} TFLOP/s"
    return ["", rate.show(), share]


def time_to_loss(quick: bool) -> Iterator[Row]:
    """Seconds of nanoGPT's baby GPT to its validation loss, start-up and compiling included."""
    text = Path(os.environ.get("GPTKIT_TEST_DATA", ".")) / "tinyshakespeare.txt"
    overrides = [f"dataset.path={str(text)!r}"] if text.exists() else []
    path = Path(__file__).parents[1] / "recipes" / "tinyshakespeare.toml"
    if quick:
        overrides += ["train.batch_size=2", "train.eval_batches=1", "train.eval_every=1"]
    read = build.read(path, overrides)
    silent = tuple(spec for spec in read.callbacks if spec.use != "log")
    stop = StopBelow(loss=TARGET, seconds=2.0 if quick else LONGEST)
    trainer = gptkit.trainer(read.model_copy(update={"callbacks": silent}), callbacks=[stop])
    begin = perf_counter()
    state = trainer.fit()
    took = perf_counter() - begin
    reached = state.val_loss is not None and state.val_loss <= TARGET
    words = f"{took:.0f} s" if reached else f"not reached in {took:.0f} s"
    yield ["", f"{words}, {state.step} steps, then {state.val_loss:.4f}", "nanoGPT: 3 min, A100"]


class StopBelow(Callback):
    """End training at a validation loss or after a time."""

    loss: float
    """Validation loss that is low enough, in nats."""
    seconds: float
    """Longest training, in seconds."""
    _begin: float = 0.0

    def on_fit_start(self, state: TrainState) -> None:
        """Start the clock."""
        self._begin = perf_counter()

    def on_eval_end(self, state: TrainState) -> None:
        """Stop if the loss is low enough or the time is over."""
        low = state.val_loss is not None and state.val_loss <= self.loss
        state.stop = low or perf_counter() - self._begin > self.seconds


def _config(scale: Scale) -> GPTConfig:
    sizes = {"vocab_size": scale.vocab_size, "block_size": scale.block_size}
    return GPTConfig(**scale.model, **sizes, bias=False)


def _trainer(scale: Scale, train: dict[str, Any], document_start: int | None = None) -> Trainer:
    return make_trainer(
        Noise(scale.vocab_size, scale.block_size),
        vocab_size=scale.vocab_size,
        block_size=scale.block_size,
        model={**scale.model, "bias": False},
        train=train,
        document_start=document_start,
    )
