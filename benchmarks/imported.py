"""Tokens per second of a real model that was imported: SmolLM2 beside transformers, llama.cpp."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx_ir as ir
import torch

import gptkit
from benchmarks import smollm2
from benchmarks.corpora import download
from benchmarks.peers import THREADS, threads
from benchmarks.report import Result, Table
from benchmarks.timing import Spread, take_turns, timed
from gptkit.onnx.graphs.generate import generate_model
from gptkit.onnx.graphs.source import ExportSource
from gptkit.onnx.runtime.generate_session import feeds
from gptkit.onnx.runtime.providers import open_session
from gptkit.runs.loaded import load_checkpoint
from gptkit.sampling.rule import SamplingOptions

NODE = ("node-llama-cpp@3.21.1", "@node-llama-cpp/linux-x64@3.21.1")
NPM = ("npm", "install", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund")
PROMPT, TOKENS, ROUNDS = "The capital of France is", 64, 3
GREEDY = SamplingOptions(temperature=0)
ENGINE, FILE = "gptkit, onnxruntime, float32", "gptkit, exported, {}"
THEIRS, LLAMA = "transformers, float32", "llama.cpp, {}"

METHOD = """\
{model}, imported by `gptkit import`; {tokens} tokens are drawn greedily after "{prompt}", batch 1,
in turns (rounds: {rounds}); the time of the prompt is in it, loading is not. "{engine}" is what
`gptkit sample` takes on a CPU; "exported" is one run of the single file, the sampler inside;
transformers is `generate(do_sample=False, use_cache=True)` with sdpa attention. llama.cpp is that
of node-llama-cpp 3.21.1 on the file as it came (Q4_1: 5 bits a weight; gptkit's int4 has the same
levels, with scales and shifts in float32: 6 bits) and on files of `gptkit export --to gguf` (Q8_0:
8.5 bits, gptkit's int8 10 here, with shifts). All have {threads} threads."""

Draw = Callable[[], object]


def measure(quick: bool) -> Result:
    """All of them on the cores of this machine."""
    tokens, rounds = (4, 1) if quick else (TOKENS, ROUNDS)
    number = max(THREADS)
    with tempfile.TemporaryDirectory() as name, threads(number):
        folder = Path(name)
        model, source = smollm2.find(folder, quick=quick)
        with patch.dict(os.environ, OMP_NUM_THREADS=str(number)):
            turns = _contestants(folder, source, tokens, number)
            runs = take_turns(turns, rounds=rounds)
    rates = {name: Spread(values).per(tokens) for name, values in runs.items()}
    medians = {name: rate.median for name, rate in rates.items()}
    rows = [
        [name, rate.show(1), f"{rate.median / medians[THEIRS]:.2f}"] for name, rate in rates.items()
    ]
    return Result(
        title="tokens per second of an imported model, batch 1",
        table=Table(("engine", "tokens/s", "ratio to transformers"), rows),
        meaning=_meaning(medians),
        method=METHOD.format(
            model=model, tokens=tokens,
            prompt=PROMPT, rounds=rounds, engine=ENGINE, threads=number,
        ).replace("\n", " "),
    )  # fmt: skip


def _meaning(medians: dict[str, float]) -> str:
    ratio = medians[ENGINE] / medians[THEIRS]
    text = f"In float32 gptkit draws {ratio:.1f} times as fast as transformers"
    pairs = {"int4": "Q4_1", "int8": "Q8_0"}
    compared = [
        f"{dtype} {medians[FILE.format(dtype)] / medians[LLAMA.format(theirs)]:.2f} times as fast "
        f"as llama.cpp with {theirs}"
        for dtype, theirs in pairs.items()
        if LLAMA.format(theirs) in medians
    ]
    return "; ".join([text, *compared]) + "."


def _contestants(
    folder: Path, source: Path, tokens: int, number: int
) -> dict[str, Callable[[], float]]:
    run = gptkit.import_model(source, out=folder / "run", quiet=True)
    model = gptkit.load(run.path, device="cpu")
    ids = model.codec.encode(PROMPT)
    found: dict[str, Callable[[], float]] = {
        ENGINE: timed(lambda: list(model.stream_tokens(ids, tokens=tokens, temperature=0)))
    }
    loaded = load_checkpoint(run.path, device="cpu").model
    for dtype in ("float32", "int8", "int4"):
        path = folder / f"{dtype}.onnx"
        ir.save(generate_model(ExportSource.of(loaded, dtype)), path)
        session, inputs = open_session(path, "cpu"), feeds(np.array([ids]), tokens, GREEDY)
        found[FILE.format(dtype)] = timed(partial(session.run, None, inputs))
    found[THEIRS] = timed(_theirs(run, folder / "hf", ids, tokens))
    if shutil.which("npm"):
        modules = download("node-llama-cpp-3.21.1", *NPM, *NODE) / "node_modules"
        files = {"Q4_1": source} if source.name != "tiny.gguf" else {"F32": source}
        if "Q4_1" in files:
            for dtype in ("q8_0", "f32"):
                path = run.export(folder / f"{dtype}.gguf", to="gguf", dtype=dtype)
                files[dtype.upper()] = path
        for name, path in files.items():
            found[LLAMA.format(name)] = partial(_llama, modules, path, ids, tokens, number)
    return found


def _theirs(run: gptkit.Run, folder: Path, ids: list[int], tokens: int) -> Draw:
    run.export(folder, to="hf", onnx=False)
    with patch.dict(os.environ, HF_HUB_OFFLINE="1"):
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = torch.tensor([ids])

    def draw() -> None:
        drawn = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
        assert drawn.shape == (1, len(ids) + tokens)

    return draw


def _llama(modules: Path, path: Path, ids: list[int], tokens: int, number: int) -> float:
    """Seconds that llama.cpp takes, without loading."""
    request = {"file": str(path), "ids": ids, "count": tokens, "threads": number}
    script = Path(__file__).with_name("llama.mjs")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "node_modules").symlink_to(modules)
        copy = shutil.copy(script, folder)
        command = ["node", copy, json.dumps(request)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    return float(done.stdout)
