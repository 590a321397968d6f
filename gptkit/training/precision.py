"""Whether bfloat16 trains faster than float32 on this CPU, by a short trial of the real step.

CPUs differ by a factor of several hundred: some have matrix units for bfloat16, some compute it
number by number. What a product gains, small models lose again to the casts around it.
"""

import sys
from collections.abc import Callable
from functools import cache, partial
from time import perf_counter, thread_time

import torch

from gptkit.model.gpt import GPT
from gptkit.recipe.options import GPTConfig

CLEARLY = 2.0
"""How many times faster bfloat16 has to be before it is taken. Matrix units make it several times
faster; less is not worth the lost digits, and is so near 1 that equal runs could differ."""
HOPELESS = 10.0
"""How many times slower a small product is where no trial is worth its time."""
CLOCK = perf_counter if sys.platform == "win32" else thread_time
"""The CPU time of this thread, since others' would count, too; Windows' is too coarse."""
SIDE, PRODUCTS = 64, 8
"""Rows and columns of that product, and how many are timed at once."""
SHORTEST = 1e-6
"""Seconds: a clock of the CPU may not see less."""
SEQUENCES, TOKENS = 2, 64
"""Of the trial's step."""
HEAD, WIDEST = 64, 384
"""Width of a head in the trial, and of the model; a wider model gains at least as much."""
ROUNDS = 3


def hopeless() -> bool:
    """Whether this CPU computes products in bfloat16 number by number."""
    return max(_ratios(_product)) < 1 / HOPELESS


@cache
def speedup(width: int) -> float:
    """How many times faster bfloat16 is than float32 in a block of that width, backward included.

    In the least favourable of a few rounds; 0 where products in bfloat16 are hopeless. The
    program's random numbers stay as they were.
    """
    if hopeless():
        return 0.0
    heads = max(1, min(width, WIDEST) // HEAD)
    config = GPTConfig(
        n_layer=1,
        n_head=heads,
        n_embd=heads * min(width, HEAD),
        vocab_size=TOKENS,
        block_size=TOKENS,
    )
    with torch.random.fork_rng(devices=[]):
        return min(_ratios(partial(_step, GPT(config))))


def _ratios(work: Callable[[torch.dtype], None]) -> list[float]:
    """Of float32's time to bfloat16's in a few rounds, after a first one.

    On one thread: several would also count how long they wait for each other.
    """
    dtypes, threads = (torch.float32, torch.bfloat16), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = [[_seconds(work, dtype) for dtype in dtypes] for _ in range(1 + ROUNDS)]
    finally:
        torch.set_num_threads(threads)
    return [full / lower for full, lower in times[1:]]


def _seconds(work: Callable[[torch.dtype], None], dtype: torch.dtype) -> float:
    begin = CLOCK()
    work(dtype)
    return max(CLOCK() - begin, SHORTEST)


def _product(dtype: torch.dtype) -> None:
    side = torch.ones(SIDE, SIDE, dtype=dtype)
    for _ in range(PRODUCTS):
        torch.mm(side, side)


def _step(model: GPT, dtype: torch.dtype) -> None:
    """Forward and backward pass."""
    tokens = torch.arange(TOKENS).expand(SEQUENCES, -1)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32, cache_enabled=False):
        loss = model(tokens, tokens)
    loss.backward()
    model.zero_grad(set_to_none=True)
