"""Peak memory and time of one training step, with and without recomputing, beside transformers."""

import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import psutil
import torch
from torch import nn

from benchmarks.peers import VOCABULARY, Shape, make_ours, make_theirs
from benchmarks.report import Result, Table
from benchmarks.timing import Spread, take_turns, timed
from benchmarks.training import make_trainer
from gptkit.plugin import TokenFile
from gptkit_grad_clip import GradClip

MB = 10**6
LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 12, 8, 256, 256, 8
QUICK_LAYERS, QUICK_BATCH = 4, 2
ROUNDS, STEPS = 5, 3
WARMUP = 2
SEED = 1
INTERVAL = 0.002
"""Seconds between two samples of the process's memory."""
TIDY = {"MALLOC_MMAP_THRESHOLD_": "262144"}
"""Makes glibc return the memory of freed tensors at once, which takes time."""

OURS, RECOMPUTE = "gptkit", "gptkit, recompute"
THEIRS, THEIR_RECOMPUTE = "transformers", "transformers, gradient checkpointing"
CONTESTANTS = (OURS, RECOMPUTE, THEIRS, THEIR_RECOMPUTE)

METHOD = """\
One step is forward, backward, clipping to norm 1 and AdamW in float32, eager, one thread, over a
vocabulary of 65: {layers} layers, {heads} heads, width {width}, {batch} x {context} tokens. Every
contestant has a process of its own with the same weights, in turns (rounds: {rounds}); transformers
runs with `attn_implementation="sdpa"`, no cache, fused AdamW and the same GELU. The peak is
the highest resident memory of {steps} steps after {warmup} to warm up, looked at every
{interval:.0f} ms, less what the process had after a step of a tiny model, where malloc gives back
what is freed ({tidy}); weights, gradients and the two moments are {state:.0f} MB of it. A step's
time is the median of its steps in a process of its own, with malloc as it is."""


def measure(quick: bool) -> Result:
    """All contestants in turns, each in a process of its own."""
    layers, batch = (QUICK_LAYERS, QUICK_BATCH) if quick else (LAYERS, BATCH)
    rounds = 1 if quick else ROUNDS
    runs = take_turns(
        {name: partial(_in_a_process, name, layers, batch) for name in CONTESTANTS},
        rounds=rounds,
        warmup=0,
    )
    peaks = {name: Spread([run["peak"] for run in found]) for name, found in runs.items()}
    times = {name: Spread([run["seconds"] for run in found]) for name, found in runs.items()}
    rows = [
        [
            name,
            peaks[name].show(unit=MB),
            times[name].show(1, unit=1e-3),
            peaks[name].over(peaks[OURS]).show(2),
            times[name].over(times[OURS]).show(2),
        ]
        for name in CONTESTANTS
    ]
    return Result(
        title="peak memory of a training step, and what recomputing costs",
        table=Table(("contestant", "peak MB", "ms a step", "memory ratio", "time ratio"), rows),
        meaning=_meaning(peaks, times),
        method=METHOD.format(
            layers=layers, heads=HEADS, width=WIDTH, batch=batch, context=CONTEXT, rounds=rounds,
            steps=STEPS, warmup=WARMUP, interval=INTERVAL * 1e3,
            tidy="=".join(*TIDY.items()),
            state=runs[OURS][0]["parameters"] * 16 / MB,
        ).replace("\n", " "),
    )  # fmt: skip


def _meaning(peaks: dict[str, Spread], times: dict[str, Spread]) -> str:
    memory = peaks[RECOMPUTE].over(peaks[OURS]).median
    price = times[RECOMPUTE].over(times[OURS]).median
    beside = peaks[OURS].over(peaks[THEIRS]).median
    return (
        f"Recomputing takes {memory:.2f} of the memory for {price:.2f} times the time; without it "
        f"a step of gptkit takes {beside:.2f} of transformers' memory."
    )


def _in_a_process(name: str, layers: int, batch: int) -> dict[str, float]:
    """What `main` prints for a contestant: time with the usual malloc, peak with `TIDY`."""
    command = [sys.executable, "-m", __name__, name, str(layers), str(batch)]
    tidy, usual = _printed(command, TIDY), _printed(command, {})
    return usual | {"peak": tidy["peak"]}


def _printed(command: list[str], settings: Mapping[str, str]) -> dict[str, float]:
    env = os.environ | {"OMP_NUM_THREADS": "1"} | settings
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(name: str, layers: int, batch: int) -> None:
    """Train a contestant in this process; print its peak, its time and its size as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.bin"
        _make(name, Shape(1, 1, 8, 8, 1), tokens)[1]()  # imports what a first step imports
        gc.collect()
        before = _resident()
        model, step = _make(name, Shape(layers, HEADS, WIDTH, CONTEXT, batch), tokens)
        for _ in range(WARMUP):
            step()
        with _Peak() as peak:
            seconds = Spread([timed(step)() for _ in range(STEPS)]).median
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps({"peak": peak.highest - before, "seconds": seconds, "parameters": parameters}))


def _make(name: str, shape: Shape, tokens: Path) -> tuple[nn.Module, Callable[[], None]]:
    """A contestant's model, and a function that takes a step."""
    recompute = name in (RECOMPUTE, THEIR_RECOMPUTE)
    if name in (OURS, RECOMPUTE):
        return _ours(shape, tokens, recompute=recompute)
    return _theirs(shape, recompute=recompute)


def _ours(shape: Shape, path: Path, *, recompute: bool) -> tuple[nn.Module, Callable[[], None]]:
    """A Trainer on random tokens."""
    tokens = 100 * shape.tokens
    np.random.default_rng(SEED).integers(VOCABULARY, size=tokens, dtype=np.uint8).tofile(path)
    trainer = make_trainer(
        TokenFile(path, "uint8", stop=tokens, block_size=shape.block_size),
        vocab_size=VOCABULARY,
        block_size=shape.block_size,
        model=shape.model,
        train={"batch_size": shape.batch_size, "recompute": recompute},
        callbacks=[GradClip(max_norm=1.0)],
    )
    return trainer.model, trainer.step


def _theirs(shape: Shape, *, recompute: bool) -> tuple[nn.Module, Callable[[], None]]:
    """Transformers' model and torch's AdamW, written as its users write it."""
    model = make_theirs(make_ours(shape)).train()
    if recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        x, y = torch.randint(VOCABULARY, (2, shape.batch_size, shape.block_size))
        model(x, labels=x, shift_labels=y, use_cache=False).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return model, step


class _Peak:
    """Records the highest resident memory of this process, sampled by a thread."""

    highest = 0.0

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(INTERVAL):
            self.highest = max(self.highest, _resident())


def _resident() -> float:
    """Resident memory of this process in bytes."""
    return float(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    contestant, depth, sequences = sys.argv[1:]
    main(contestant, int(depth), int(sequences))
