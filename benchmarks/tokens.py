"""Training on a token file of 1 MB and of 10 GB: steps per second and peak memory."""

import json
import resource
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.report import ROOT, Result, Table
from benchmarks.timing import Spread, take_turns

MB = 10**6
SIZES = {"1 MB": MB, "10,000 MB": 10_000 * MB}
STEPS, QUICK_STEPS, ROUNDS = 1000, 20, 5
VOCABULARY, BLOCK, BATCH = 65, 64, 12

METHOD = """\
The trainer with a tiny model (1 layer of width 32, {batch} x {block} tokens a step, {steps} steps,
one thread) on a file of uint8 tokens, in a process of its own, in turns (rounds: {rounds}). The
large file is sparse: it has random tokens in its first and last megabyte and a hole between, which
the disk does not have to hold but the program has to read. The peak is the process's highest
resident memory, imports included."""


def measure(quick: bool) -> Result:
    """Both files in turns."""
    steps, rounds = (QUICK_STEPS, 1) if quick else (STEPS, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: _write(Path(folder) / f"{size}.bin", size) for name, size in SIZES.items()}
        runs = take_turns(
            {name: partial(_run, path, steps) for name, path in paths.items()},
            rounds=rounds,
            warmup=0 if quick else 1,
        )
    rates = {n: Spread([run["rate"] for run in found]) for n, found in runs.items()}
    peaks = {n: Spread([run["peak"] for run in found]) for n, found in runs.items()}
    small, large = SIZES
    return Result(
        title="training on a small and on a very large token file",
        table=Table(
            ("file", "steps/s", "peak MB"),
            [[name, rates[name].show(), peaks[name].show(unit=MB)] for name in SIZES],
        ),
        meaning=f"A file of {large} trains at {rates[large].over(rates[small]).median:.2f} times "
        f"the steps per second of one of {small}, in "
        f"{peaks[large].median / peaks[small].median:.2f} times the memory.",
        method=METHOD.format(batch=BATCH, block=BLOCK, steps=steps, rounds=rounds).replace(
            "\n", " "
        ),
    )


def _write(path: Path, size: int) -> Path:
    """A token file of random tokens, with a hole in the middle if it is large."""
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=MB // 2, dtype=np.uint8)
    with path.open("wb") as file:
        file.write(tokens.tobytes())
        file.seek(size - len(tokens))
        file.write(tokens.tobytes())
    return path


def _run(path: Path, steps: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.tokens", str(path), str(steps)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _train(path: Path, steps: int) -> dict[str, float]:
    """Train in this process."""
    import torch

    from benchmarks.training import make_trainer
    from gptkit.plugin import TokenFile

    torch.set_num_threads(1)
    trainer = make_trainer(
        TokenFile(path, "uint8", stop=path.stat().st_size, block_size=BLOCK),
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


if __name__ == "__main__":
    print(json.dumps(_train(Path(sys.argv[1]), int(sys.argv[2]))))
