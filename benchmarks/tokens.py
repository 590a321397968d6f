"""Training on 1 MB and on 10 GB of tokens: steps per second and peak memory."""

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.report import ROOT, Result, Table
from benchmarks.timing import Spread, take_turns
from gptkit_text.index import shard_name

if TYPE_CHECKING:
    from gptkit.plugin import Split

Key = tuple[str, str]
"""A type of tokens and the title of a size."""
SHARD = 1 << 27
"""Tokens of a shard, as in `gptkit_text.writer`."""
MB = 10**6
SIZES = {"1 MB": MB, "10,000 MB": 10_000 * MB}
ORDERS = {"uint8": "TokenFile, drawn", "uint16": "gptkit-text, shuffled"}
"""What reads the tokens, by their type."""
STEPS, QUICK_STEPS, ROUNDS = 1000, 20, 5
VOCABULARY, BLOCK, BATCH = 65, 64, 12

METHOD = """\
The trainer with a tiny model (1 layer of width 32, {batch} x {block} tokens a step, {steps} steps,
one thread) on tokens of one and of two bytes, in a process of its own, in turns (rounds: {rounds}).
Those of one byte lie in one file, and windows are drawn with replacement; those of two bytes lie in
shards of {shard:,} tokens, as the plugin gptkit-text writes them, and every window comes once per
epoch. The large ones are sparse: they have random tokens in their first and last half megabyte, of
every shard, and a hole between, which the disk does not have to hold but the program has to read.
The peak is the process's highest resident memory, imports included."""


def measure(quick: bool) -> Result:
    """All sizes and types in turns."""
    steps, rounds = (QUICK_STEPS, 1) if quick else (STEPS, ROUNDS)
    with tempfile.TemporaryDirectory() as name:
        contestants = {}
        for dtype, (title, size) in product(ORDERS, SIZES.items()):
            folder = Path(name) / f"{dtype}-{size}"
            _write(folder, size, dtype)
            contestants[dtype, title] = partial(_run, folder, dtype, steps)
        runs = take_turns(contestants, rounds=rounds, warmup=0 if quick else 1)
    rates = {key: Spread([run["rate"] for run in found]) for key, found in runs.items()}
    peaks = {key: Spread([run["peak"] for run in found]) for key, found in runs.items()}
    rows = [
        [f"{title} of {dtype}: {ORDERS[dtype]}", rates[key].show(), peaks[key].show(unit=MB)]
        for key in contestants
        for dtype, title in [key]
    ]
    return Result(
        title="training on a small and on a very large token file",
        table=Table(("tokens", "steps/s", "peak MB"), rows),
        meaning=_meaning(rates, peaks),
        method=METHOD.format(
            batch=BATCH, block=BLOCK, steps=steps, rounds=rounds, shard=SHARD
        ).replace("\n", " "),
    )


def _meaning(rates: Mapping[Key, Spread], peaks: Mapping[Key, Spread]) -> str:
    small, large = SIZES
    told = [
        f"{rates[dtype, large].over(rates[dtype, small]).median:.2f} times the steps per second "
        f"in {peaks[dtype, large].median / peaks[dtype, small].median:.2f} times the memory "
        f"({dtype})"
        for dtype in ORDERS
    ]
    return f"{large} of tokens train, beside {small}, at {' and '.join(told)}."


def _write(folder: Path, size: int, dtype: str) -> None:
    """Token files of random tokens, with a hole in the middle if they are large."""
    folder.mkdir()
    length = np.dtype(dtype).itemsize
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=MB // 2 // length, dtype=dtype)
    shard = SHARD * length if dtype == "uint16" else size
    for number, start in enumerate(range(0, size, shard)):
        with (folder / shard_name("train", number)).open("wb") as file:
            file.write(tokens.tobytes())
            file.seek(min(shard, size - start) - tokens.nbytes)
            file.write(tokens.tobytes())


def _run(folder: Path, dtype: str, steps: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.tokens", str(folder), dtype, str(steps)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _train(folder: Path, dtype: str, steps: int) -> dict[str, float]:
    """Train in this process."""
    import torch

    from benchmarks.training import make_trainer

    torch.set_num_threads(1)
    trainer = make_trainer(
        _split(sorted(folder.iterdir()), dtype),
        vocab_size=VOCABULARY,
        block_size=BLOCK,
        model={"n_layer": 1, "n_head": 2, "n_embd": 32},
        train={"batch_size": BATCH},
    )
    trainer.step()
    begin = perf_counter()
    for _ in range(steps):
        trainer.step()
    rate = steps / (perf_counter() - begin)
    return {"rate": rate, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _split(paths: Sequence[Path], dtype: str) -> "Split":
    from gptkit.plugin import TokenFile

    sizes = [path.stat().st_size // np.dtype(dtype).itemsize for path in paths]
    if dtype == "uint8":
        return TokenFile(paths[0], dtype, stop=sizes[0], block_size=BLOCK)

    from gptkit_text.order import Order
    from gptkit_text.windows import Segment, Windows

    segments = [Segment(path, 0, size) for path, size in zip(paths, sizes, strict=True)]
    order = Order((sum(sizes),), weights=(1,), block_size=BLOCK, shuffle=True)
    return Windows(segments, dtype, block_size=BLOCK, order=order)


if __name__ == "__main__":
    print(json.dumps(_train(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
