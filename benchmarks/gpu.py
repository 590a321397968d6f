"""One GPU in one go: correctness first, then training, time to a loss, and sampling."""

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import gptkit
from benchmarks.bundles import write_bundle
from benchmarks.report import Result, Table
from benchmarks.timing import Spread
from benchmarks.training import make_trainer
from gptkit.errors import GptkitError
from gptkit.model.gpt import GPT
from gptkit.onnx.runtime.decode_session import DecodeSession
from gptkit.onnx.runtime.generate_session import feeds
from gptkit.onnx.runtime.model import GENERATE_FILE
from gptkit.onnx.runtime.providers import open_session, provider
from gptkit.plugin import Callback, Split, TrainState
from gptkit.recipe import build
from gptkit.recipe.options import PRESETS, GPTConfig, TrainOptions
from gptkit.sampling.generate import generate
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.torch_decoder import make_decoder
from gptkit.training.device import resolve_device
from gptkit.training.trainer import Trainer

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12, "4090": 165e12}
"""Dense bfloat16 FLOP/s that the makers name (H100 and H200: the SXM form)."""
TARGET = 1.4697
"""nanoGPT's figure for its baby GPT, in nats per character."""
CLOSE = 0.05
"""How far the loss after a few steps on the device may be from the CPU's in float32."""
LONGEST = 200.0
"""Limit in seconds for training to the target loss."""

METHOD = """\
{device}, torch {torch}. First a small model is trained for {steps} steps from one seed on the CPU
in float32 and on the device as `auto` chooses; the losses are {losses}. Training: a GPT-2 of
{parameters:,.0f} M parameters, {batch} x {block} random tokens an update, AdamW, the trainer as
`gptkit train` runs it. MFU is 6 N + 12 L C T FLOPs a token over the dense bfloat16 peak that the
maker names, or over a square matrix product measured here where none is known. Matrix product:
{matmul:.1f} TFLOP/s. Sampling: 6L 6H 384, T 256, one sequence from one token; the limit is one pass
over the weights for each token at {bandwidth:.0f} GB/s, as measured by copying."""


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
    matmul: int


FULL = Scale(PRESETS["gpt2"], 50304, 1024, 32, 20, 8, 200, 8192)
SMALL = Scale({"n_layer": 2, "n_head": 2, "n_embd": 32}, 65, 32, 4, 3, 1, 8, 256)


class Noise(Split):
    """Windows of random tokens."""

    def __init__(self, vocab_size: int, block_size: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.vocab_size, self.stride = vocab_size, block_size
        self._tokens = torch.randint(vocab_size, (1 << 22,), generator=generator)

    def __len__(self) -> int:
        return len(self._tokens) - self.stride

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        rows = self._tokens[indices[:, None] + torch.arange(self.stride + 1)]
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def measure(quick: bool) -> Result:
    """Run all parts; without a GPU at small sizes on the CPU."""
    cuda = torch.cuda.is_available()
    scale = FULL if cuda and not quick else SMALL
    device = torch.cuda.get_device_name() if cuda else "no GPU: everything in miniature on the CPU"
    losses = check_device()
    matmul, bandwidth = matrix_product(scale.matmul), copying(1 << (30 if cuda else 22))
    rate = train_rate(scale)
    peak = next((flops for name, flops in PEAKS.items() if name in device), matmul)
    share = rate.median * _flops_per_token(scale) / peak
    rows = [
        ["training, tokens/s", rate.show(), f"{share:.1%} MFU of {peak / 1e12:,.1f} TFLOP/s"],
        time_to_loss(quick or not cuda),
        *sampling(scale, bandwidth),
    ]
    return Result(
        title="training and sampling on one GPU",
        table=Table(("what", "figure", "limit"), rows),
        meaning=f"{device}: {rate.median:,.0f} tokens/s of training at {share:.1%} MFU.",
        method=METHOD.format(
            device=device, torch=torch.__version__, steps=20,
            losses=" and ".join(f"{loss:.4f}" for loss in losses),
            parameters=_parameters(scale) / 1e6, batch=scale.batch_size, block=scale.block_size,
            matmul=matmul / 1e12, bandwidth=bandwidth / 1e9,
        ).replace("\n", " "),
    )  # fmt: skip


def check_device() -> tuple[float, float]:
    """Train a little on the CPU and on the device; both losses.

    Raises:
        RuntimeError: they are further apart than precision explains.
    """
    losses = []
    for device, dtype in (("cpu", "float32"), ("auto", "auto")):
        options = {"batch_size": 8, "device": device, "dtype": dtype, "compile": False}
        trainer = _trainer(SMALL, options)
        for _ in range(20):
            trainer.step()
        losses.append(float(trainer.state.loss))
    if abs(losses[0] - losses[1]) > CLOSE:
        raise RuntimeError(f"the device trains differently: losses {losses}")
    return losses[0], losses[1]


def train_rate(scale: Scale) -> Spread:
    """Tokens per second of `Trainer.step`, as the recipe's "auto" settings run it."""
    trainer = _trainer(scale, {"batch_size": scale.batch_size, "device": "auto"})
    for _ in range(scale.warmup):
        trainer.step()
    seconds = []
    for _ in range(3):
        _wait()
        begin = perf_counter()
        for _ in range(scale.steps):
            trainer.step()
        _wait()
        seconds.append((perf_counter() - begin) / scale.steps)
    return Spread(seconds).per(scale.batch_size * scale.block_size)


def time_to_loss(quick: bool) -> list[str]:
    """Seconds of nanoGPT's baby GPT to its validation loss, start-up and compiling included."""
    name = f"baby GPT to a validation loss of {TARGET}"
    text = Path(os.environ.get("GPTKIT_TEST_DATA", ".")) / "tinyshakespeare.txt"
    overrides = [f"dataset.path={str(text)!r}"] if text.exists() else []
    path = Path(__file__).parents[1] / "recipes" / "tinyshakespeare.toml"
    try:
        if quick:
            overrides += ["train.batch_size=2", "train.eval_batches=1", "train.eval_every=1"]
        read = build.read(path, overrides)
        silent = tuple(spec for spec in read.callbacks if spec.use != "log")
        stop = StopBelow(loss=TARGET, seconds=2.0 if quick else LONGEST)
        recipe = read.model_copy(update={"callbacks": silent})
        trainer = gptkit.trainer(recipe, callbacks=[stop])
    except GptkitError as error:
        return [name, f"not measured: {error}", "-"]
    begin = perf_counter()
    state = trainer.fit()
    took = perf_counter() - begin
    reached = state.val_loss is not None and state.val_loss <= TARGET
    words = f"{took:.0f} s" if reached else f"not reached in {took:.0f} s"
    return [name, f"{words}, {state.step} steps, then {state.val_loss:.4f}", "nanoGPT: 3 min, A100"]


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


def sampling(scale: Scale, bandwidth: float) -> Iterator[list[str]]:
    """Tokens per second of one sequence in torch and in onnxruntime."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=6, n_head=6, n_embd=384, vocab_size=65, block_size=256)).eval()
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    settings = SamplingOptions(temperature=0.8, seed=1)
    limits = {name: bandwidth / (model.n_parameters() * size) for name, size in SIZES.items()}
    with tempfile.TemporaryDirectory() as folder:
        bundles = {name: Path(folder) / name for name in SIZES}
        runs: dict[str, tuple[str, Callable[[], Any]]] = {}
        for name, bundle in bundles.items():
            write_bundle(model, bundle, name, device)
            session = open_session(bundle / GENERATE_FILE, device)
            runs[f"{provider(session)}, generate.onnx, {name}"] = name, _looping(session, scale)
            steps = DecodeSession(bundle, device)
            runs[f"{provider(steps.session)}, decode.onnx, {name}"] = name, _decoding(steps, scale)
        decoder = make_decoder(model.to(device), 1)
        runs["torch, float32"] = (
            "float32",
            lambda: list(generate(decoder, [0], tokens=scale.tokens, sampling=settings)),
        )
        for title, (name, run) in runs.items():
            rate = Spread([_seconds(run) for _ in range(5)][1:]).per(scale.tokens)
            yield [f"sampling, {title}, tokens/s", rate.show(), f"{limits[name]:,.0f}"]


SIZES = {"float32": 4, "float16": 2}
"""Bytes of a weight."""


def matrix_product(size: int) -> float:
    """FLOP/s of a square matrix product in the precision that training takes."""
    run_device = resolve_device(TrainOptions())
    a = torch.randn(size, size, device=run_device.device, dtype=run_device.dtype)
    best = min(_seconds(lambda: a @ a) for _ in range(10))
    return float(2 * size**3 / best)


def copying(size: int) -> float:
    """Bytes per second that the device's memory reads and writes."""
    a = torch.zeros(size, dtype=torch.uint8, device=resolve_device(TrainOptions()).device)
    b = torch.empty_like(a)
    return 2 * size / min(_seconds(lambda: b.copy_(a)) for _ in range(10))


def _parameters(scale: Scale) -> int:
    """Number of parameters without the position table, which is in no matrix product."""
    config = _config(scale)
    return GPT(config).n_parameters() - config.block_size * config.n_embd


def _flops_per_token(scale: Scale) -> float:
    """FLOPs per token of a training step (Chowdhery et al. 2022, appendix B)."""
    config = _config(scale)
    return 6 * _parameters(scale) + 12 * config.n_layer * config.n_embd * config.block_size


def _config(scale: Scale) -> GPTConfig:
    return GPTConfig(**scale.model, vocab_size=scale.vocab_size, block_size=scale.block_size)


def _trainer(scale: Scale, train: dict[str, Any]) -> Trainer:
    return make_trainer(
        Noise(scale.vocab_size, scale.block_size),
        vocab_size=scale.vocab_size,
        block_size=scale.block_size,
        model=scale.model,
        train=train,
    )


def _looping(session: Any, scale: Scale) -> Callable[[], Any]:
    inputs = feeds(
        np.zeros((1, 1), np.int64), scale.tokens, SamplingOptions(temperature=0.8, seed=1)
    )
    return lambda: session.run(None, inputs)


def _decoding(session: DecodeSession, scale: Scale) -> Callable[[], Any]:
    prompts, settings = np.zeros((1, 1), np.int64), SamplingOptions(temperature=0.8, seed=1)
    return lambda: list(session.stream(prompts, scale.tokens, settings, chunk=scale.tokens))


def _seconds(work: Callable[[], Any]) -> float:
    """Seconds of one call, the device's work included."""
    _wait()
    begin = perf_counter()
    work()
    _wait()
    return perf_counter() - begin


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
