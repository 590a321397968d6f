"""Tokens per second of exported models, beside torch, transformers and other onnxruntime routes."""

import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx_ir as ir

from benchmarks import onnx_peers
from benchmarks.bundles import write_bundle
from benchmarks.peers import THREADS, Shape, make_ours, make_theirs, threads
from benchmarks.report import Result, Table
from benchmarks.timing import Spread, take_turns, timed
from gptkit.model.gpt import GPT
from gptkit.onnx.graphs.generate import generate_model
from gptkit.onnx.graphs.source import ExportSource
from gptkit.onnx.runtime.decode_session import STEP_FILE, DecodeSession
from gptkit.onnx.runtime.generate_session import feeds
from gptkit.onnx.runtime.model import GENERATE_FILE
from gptkit.onnx.runtime.providers import open_session
from gptkit.sampling.generate import generate
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.torch_decoder import TorchDecoder

SHAPE = Shape(n_layer=6, n_head=6, n_embd=384, block_size=256, batch_size=1)
LONG = 4096
BATCHES = (1, 8)
TOKENS, ROUNDS = 200, 5
SAMPLING = SamplingOptions(temperature=0.8, seed=1)
DTYPES = ("float32", "int8", "int4")

TORCH, OURS = "gptkit, torch", "gptkit generate.onnx, float32"
DEFAULT, THEIRS = "transformers, as it comes", "transformers, fastest activation"

METHOD = """\
{shape}, vocabulary 65, opset 21, fresh weights, the same for all; {tokens} tokens are drawn
from one at temperature 0.8, in turns (rounds: {rounds}), a batch's tokens counted together.
generate.onnx: one run of the single file. decode.onnx: one token per run, sampler inside, bound
buffers, tokens looked at once at the end. model.onnx: a step under transformers' names, in a Python
loop with numpy's sampler. torch.onnx.export: the same model with a concatenated cache, traced at
opset 23, in the same loop. transformers: `generate` with its cache, as its users get it and with
the fastest activation. {absent} "T {long}" is generate.onnx in float32 for a context of {long},
from one token, {tokens} tokens; its ratio is the price of a context that is not used. The ratios
are of the medians."""


def measure(quick: bool) -> Result:
    """All contestants with every number of threads and sequences."""
    tokens, rounds = (8, 2) if quick else (TOKENS, ROUNDS)
    cells: dict[str, list[str]] = {}
    medians: dict[tuple[str, int, int], float] = {}
    header = ["tokens/s"]
    for number in THREADS:
        for batch in BATCHES:
            header.append(f"{number} thread{'s' * (number > 1)}, batch {batch}")
            onnxruntimes = patch.dict(os.environ, OMP_NUM_THREADS=str(number))
            with tempfile.TemporaryDirectory() as folder, threads(number), onnxruntimes:
                runs = take_turns(_contestants(Path(folder), batch, number, tokens), rounds=rounds)
            for name, values in runs.items():
                rate = Spread(values).per(tokens * batch)
                medians[name, number, batch] = rate.median
                cells.setdefault(name, []).append(rate.show())
    rows = [[name, *row, *["-"] * (len(header) - 1 - len(row))] for name, row in cells.items()]
    absent = [name for name, there in onnx_peers.AVAILABLE.items() if not there]
    return Result(
        title="tokens per second of exported models",
        table=Table(header, rows),
        meaning=_meaning(medians),
        method=METHOD.format(
            shape=SHAPE, tokens=tokens, rounds=rounds, long=LONG, short=SHAPE.block_size,
            absent=f"Not installed: {', '.join(absent)}." if absent else "",
        ).replace("\n", " "),
    )  # fmt: skip


def _meaning(medians: Mapping[tuple[str, int, int], float]) -> str:
    """The ratios that matter, batch 1 on one thread."""
    single = {
        name: value for (name, number, batch), value in medians.items() if number == batch == 1
    }
    ours = [value for name, value in single.items() if name.endswith("float32")]
    best_other = max(single[name] for name in single if name in onnx_peers.AVAILABLE)
    int4 = single["gptkit generate.onnx, int4"] / single[OURS]
    best = max(ours)
    return (
        f"On one thread a single sequence is drawn in float32 by generate.onnx at "
        f"{single[OURS] / single[DEFAULT]:.1f} times the rate of transformers' generate "
        f"({single[OURS] / single[THEIRS]:.1f} times with its fastest activation), by the fastest "
        f"of our graphs at {best / single[DEFAULT]:.1f} times, which is "
        f"{best / best_other:.2f} times the best other onnxruntime route; int4 is {int4:.1f} times "
        f"float32; a context of {LONG} costs {single[OURS] / single[_long()]:.2f} times as much "
        f"per token as one of {SHAPE.block_size}."
    )


def _long() -> str:
    return f"gptkit generate.onnx, T {LONG}"


def _contestants(
    folder: Path, batch: int, number: int, tokens: int
) -> dict[str, Callable[[], float]]:
    model = make_ours(SHAPE).eval()
    runs: dict[str, Callable[[], Any]] = {TORCH: partial(_draw_torch, model, batch, tokens)}
    for dtype in DTYPES:
        bundle = folder / dtype
        write_bundle(model, bundle, dtype)
        runs |= {
            f"gptkit generate.onnx, {dtype}": _generating(bundle / GENERATE_FILE, batch, tokens),
            f"gptkit decode.onnx, {dtype}": _decoding(bundle, batch, tokens),
            f"gptkit model.onnx, {dtype}": onnx_peers.stepping(
                bundle / STEP_FILE, model.config, batch, tokens, SAMPLING
            ),
        }
    longer = make_ours(Shape(6, 6, 384, LONG, 1)).eval()
    file = folder / "long.onnx"
    ir.save(generate_model(ExportSource.of(longer)), file)
    runs[_long()] = _generating(file, batch, tokens)
    for name, activation in ((DEFAULT, "gelu_new"), (THEIRS, "gelu")):
        theirs = make_theirs(model, activation=activation).eval()
        runs[name] = partial(onnx_peers.draw_transformers, theirs, batch, tokens)
    runs |= onnx_peers.routes(folder, model, batch, number, tokens, SAMPLING)
    return {name: timed(run) for name, run in runs.items()}


def _draw_torch(model: GPT, batch: int, tokens: int) -> None:
    decoder = TorchDecoder(model, batch)
    for _ in generate(decoder, [0], tokens=tokens, sampling=SAMPLING, samples=batch):
        pass


def _generating(file: Path, batch: int, tokens: int) -> Callable[[], Any]:
    session = open_session(file, "cpu")
    inputs = feeds(np.zeros((batch, 1), np.int64), tokens, SAMPLING)
    return lambda: session.run(None, inputs)


def _decoding(bundle: Path, batch: int, tokens: int) -> Callable[[], Any]:
    session, prompts = DecodeSession(bundle, "cpu"), np.zeros((batch, 1), np.int64)
    return lambda: list(session.stream(prompts, tokens, SAMPLING, chunk=tokens))
