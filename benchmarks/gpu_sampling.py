"""Tokens per second of one sequence in torch and in onnxruntime, on a GPU if there is one."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.bundles import write_bundle
from benchmarks.parts import Row, seconds, take_parts
from benchmarks.timing import Spread
from gptkit.model.gpt import GPT
from gptkit.onnx.runtime.decode_session import DecodeSession
from gptkit.onnx.runtime.generate_session import feeds
from gptkit.onnx.runtime.model import GENERATE_FILE
from gptkit.onnx.runtime.providers import open_session, provider
from gptkit.recipe.options import GPTConfig, TrainOptions
from gptkit.sampling.generate import generate
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.torch_decoder import make_decoder
from gptkit.training.device import resolve_device

SETTINGS = SamplingOptions(temperature=0.8, seed=1)
SIZES = {"float32": 4, "float16": 2}
"""Bytes of a weight."""

Prepare = Callable[[str], tuple[Callable[[], Any], str]]
"""From a device to what draws all tokens on it, and the name of what runs it."""


def sampling(tokens: int, copied: int) -> Iterator[Row]:
    """All ways; one that cannot be measured has a row that says so.

    Args:
        tokens: to draw.
        copied: bytes that are copied to measure the speed of the memory.
    """
    model = GPT(GPTConfig(n_layer=6, n_head=6, n_embd=384, vocab_size=65, block_size=256)).eval()
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    numbers, bandwidth = model.n_parameters(), copying(copied)
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, tuple[Prepare, int]] = {}
        for dtype, size in SIZES.items():
            bundle = Path(folder) / dtype
            write_bundle(model, bundle, dtype, device)
            ways |= {
                f"onnxruntime, generate.onnx, {dtype}": (partial(_looping, bundle, tokens), size),
                f"onnxruntime, decode.onnx, {dtype}": (partial(_decoding, bundle, tokens), size),
            }
        ways["torch, float32"] = partial(_drawing, model, tokens), 4
        parts = {
            f"sampling, {name}": partial(
                _row, prepare, device, tokens, f"{bandwidth / (numbers * size):,.0f}"
            )
            for name, (prepare, size) in ways.items()
        }
        yield from take_parts(parts)


def _row(prepare: Prepare, device: str, tokens: int, limit: str) -> Iterator[Row]:
    run, runtime = prepare(device)
    rate = Spread([seconds(run) for _ in range(5)][1:]).per(tokens)
    yield ["", f"{rate.show()} tokens/s, {runtime}", limit]


def _drawing(model: GPT, tokens: int, device: str) -> tuple[Callable[[], Any], str]:
    decoder = make_decoder(model.to(device), 1)
    run = partial(generate, decoder, [0], tokens=tokens, sampling=SETTINGS)
    return lambda: list(run()), type(decoder).__name__


def _looping(bundle: Path, tokens: int, device: str) -> tuple[Callable[[], Any], str]:
    session = open_session(bundle / GENERATE_FILE, device)
    inputs = feeds(np.zeros((1, 1), np.int64), tokens, SETTINGS)
    return lambda: session.run(None, inputs), provider(session)


def _decoding(bundle: Path, tokens: int, device: str) -> tuple[Callable[[], Any], str]:
    steps, prompts = DecodeSession(bundle, device), np.zeros((1, 1), np.int64)
    run = partial(steps.stream, prompts, tokens, SETTINGS, chunk=tokens)
    return lambda: list(run()), provider(steps.session)


def copying(size: int) -> float:
    """Bytes per second that the device's memory reads and writes."""
    a = torch.zeros(size, dtype=torch.uint8, device=resolve_device(TrainOptions()).device)
    b = torch.empty_like(a)
    return 2 * size / min(seconds(lambda: b.copy_(a)) for _ in range(10))
