"""Tokens per second of sampling: every engine beside nanoGPT and transformers, and its floor."""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx_ir as ir
import torch

from benchmarks.nanogpt import NanoGPT
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
from gptkit.model.gpt import GPT
from gptkit.onnx.graphs.generate import generate_model
from gptkit.onnx.graphs.source import ExportSource
from gptkit.onnx.runtime.decoder import OnnxDecoder, WeightsSession
from gptkit.onnx.runtime.generate_session import feeds
from gptkit.onnx.runtime.providers import open_session
from gptkit.sampling.generate import Decoder, generate
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.torch_decoder import TorchDecoder

SHAPE = Shape(n_layer=6, n_head=6, n_embd=384, block_size=256, batch_size=1)
PROMPT = [1]
TOKENS = 200
ROUNDS = 7
SAMPLING = SamplingOptions(temperature=1.0, seed=1)

NANOGPT, THEIRS, TORCH = "nanoGPT, without cache", "transformers, with cache", "gptkit, torch"
ENGINE, FILE = "gptkit, onnxruntime", "gptkit, exported, {}"
DTYPES = ("float32", "int8", "int4")

METHOD = """\
{shape}, vocabulary 65, eager, fresh weights, the same in all but nanoGPT, which has no biases;
{tokens} tokens are drawn from one, at temperature 1 over the whole vocabulary, in turns (rounds:
{rounds}). nanoGPT is its arithmetic, written out in `benchmarks/nanogpt.py`: it computes the whole
text again for every token. transformers is `generate(do_sample=True, top_k=0, use_cache=True)` with
sdpa attention. "{torch}" and "{engine}" are the engines of `gptkit sample` on a run; "exported" is
one run of the single file. All of gptkit's in float32 are checked to draw the same tokens. The
floor reads the weights once a token, at the speed at which one thread reads so many bytes again and
again: {speeds}. The weights of int8 and int4 fit into the caches of many CPUs. The ratios are of
the medians on one thread."""


@dataclass(frozen=True)
class Contestant:
    """What draws tokens with a number of threads, and how much it reads for each."""

    draw: Callable[[], object]
    megabytes: float | None = None
    """Of weights; None: not of interest."""


def measure(quick: bool) -> Result:
    """All of them with every number of threads."""
    tokens, rounds = (8, 2) if quick else (TOKENS, ROUNDS)
    rates: list[dict[str, Spread]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in THREADS:
            onnxruntimes = patch.dict(os.environ, OMP_NUM_THREADS=str(number))
            with threads(number), onnxruntimes:
                contestants = _contestants(Path(folder), tokens)
                turns = {name: timed(each.draw) for name, each in contestants.items()}
                runs = take_turns(turns, rounds=rounds)
            rates.append({name: Spread(values).per(tokens) for name, values in runs.items()})
    medians = {name: rate.median for name, rate in rates[0].items()}
    speeds = {
        each.megabytes: reading(each.megabytes) for each in contestants.values() if each.megabytes
    }
    return Result(
        title="tokens per second of sampling, batch 1",
        table=Table(
            ("engine", *(f"threads {n}: tokens/s" for n in THREADS), "ratio to nanoGPT",
             "MB of weights", "floor, tokens/s", "of the floor"),
            [
                [name, *(rate[name].show() for rate in rates),
                 f"{medians[name] / medians[NANOGPT]:.1f}", *_floor(each, speeds, medians[name])]
                for name, each in contestants.items()
            ],
        ),
        meaning=_meaning(medians),
        method=METHOD.format(
            shape=SHAPE, tokens=tokens, rounds=rounds, torch=TORCH, engine=ENGINE,
            speeds=", ".join(f"{speed:.0f} GB/s for {mb:.0f} MB" for mb, speed in speeds.items()),
        ).replace("\n", " "),
    )  # fmt: skip


def reading(megabytes: float) -> float:
    """The most GB/s at which one thread reads an array of that size again and again."""
    array = np.ones(int(megabytes * 1e6) // 8, np.int64)
    seconds = []
    for _ in range(20):
        begin = perf_counter()
        array.max()
        seconds.append(perf_counter() - begin)
    return array.nbytes / min(seconds) / 1e9


def _floor(each: Contestant, speeds: Mapping[float, float], rate: float) -> list[str]:
    """Cells: the weights, the most tokens per second, and the share that is reached."""
    if each.megabytes is None:
        return ["-", "-", "-"]
    floor = 1e3 * speeds[each.megabytes] / each.megabytes
    return [f"{each.megabytes:.1f}", f"{floor:,.0f}", f"{rate / floor:.0%}"]


def _meaning(medians: Mapping[str, float]) -> str:
    ratios = {name: rate / medians[NANOGPT] for name, rate in medians.items()}
    files = ", ".join(f"{ratios[FILE.format(dtype)]:.0f} ({dtype})" for dtype in DTYPES)
    return (
        f"On one thread gptkit draws {ratios[TORCH]:.1f} times as fast as nanoGPT in torch and "
        f"{ratios[ENGINE]:.1f} times in onnxruntime; exported files {files} times, and "
        f"transformers' generate {ratios[THEIRS]:.1f} times."
    )


def _contestants(folder: Path, tokens: int) -> dict[str, Contestant]:
    ours = make_ours(SHAPE).eval()
    theirs = make_theirs(ours).eval()
    check_equal(ours, theirs, *torch.randint(VOCABULARY, (2, 4, SHAPE.block_size)))
    read = _megabytes(ours, "float32")
    weights = {name: tensor.detach().numpy() for name, tensor in ours.weights().items()}
    session = WeightsSession(ours.config, weights, "the benchmark's model")
    found = {
        NANOGPT: Contestant(partial(_nanogpt(ours).generate, torch.tensor([PROMPT]), tokens)),
        THEIRS: Contestant(partial(_draw_theirs, theirs, tokens)),
        TORCH: Contestant(lambda: _draw(TorchDecoder(ours, 1), tokens), read),
        ENGINE: Contestant(lambda: _draw(OnnxDecoder(session, 1), tokens), read),
    }
    for dtype in DTYPES:
        file = folder / f"{dtype}.onnx"
        ir.save(generate_model(ExportSource.of(ours, dtype)), file)
        draw = _generating(file, tokens)
        found[FILE.format(dtype)] = Contestant(draw, _megabytes(ours, dtype))
    texts = {name: found[name].draw() for name in (TORCH, ENGINE, FILE.format("float32"))}
    if len(set(map(str, texts.values()))) > 1:
        raise RuntimeError(f"the engines draw different tokens: {texts}")
    return found


def _megabytes(model: GPT, dtype: str) -> float:
    """Size of the weights that are read for a token: all but the tables that are looked up."""
    config = model.config
    numbers = model.n_parameters() - config.block_size * config.n_embd
    bits = {"float32": 32.0, "int8": 9.0, "int4": 5.0}[dtype]  # with a float32 for every 32
    return numbers * bits / 8e6


def _nanogpt(ours: GPT) -> NanoGPT:
    config = ours.config.model_copy(update={"bias": False})
    return NanoGPT.of(GPT(config)).eval()


def _draw(decoder: Decoder, tokens: int) -> list[int]:
    """As `gptkit sample` does it."""
    drawn = generate(decoder, PROMPT, tokens=tokens, sampling=SAMPLING)
    return [int(chosen[0]) for chosen in drawn]


def _generating(file: Path, tokens: int) -> Callable[[], list[int]]:
    session = open_session(file, "cpu")
    inputs = feeds(np.array([PROMPT]), tokens, SAMPLING)

    def draw() -> list[int]:
        (drawn,) = session.run(None, inputs)
        return list(map(int, drawn[0]))

    return draw


def _draw_theirs(model: Any, tokens: int) -> None:
    prompt = torch.tensor([PROMPT])
    drawn = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        use_cache=True,
        pad_token_id=0,
    )
    if drawn.shape != (1, len(PROMPT) + tokens):
        raise RuntimeError(f"transformers drew {tuple(drawn.shape)}")
