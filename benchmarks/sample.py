"""Tokens per second of sampling: with the KV cache, without it, and transformers' generate."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.peers import THREADS, Shape, check_equal, make_ours, make_theirs, threads
from benchmarks.report import Result, Table
from benchmarks.timing import Spread, take_turns, timed
from gptkit.model.gpt import GPT
from gptkit.sampling.generate import generate
from gptkit.sampling.rule import SamplingOptions, choose, uniforms
from gptkit.sampling.torch_decoder import TorchDecoder

SHAPE = Shape(n_layer=6, n_head=6, n_embd=384, block_size=256, batch_size=1)
PROMPT = [1]
TOKENS = 200
ROUNDS = 7
SAMPLING = SamplingOptions(temperature=1.0, seed=1)

CACHED, UNCACHED, THEIRS = "gptkit", "gptkit without cache", "transformers, with cache"

METHOD = """\
{shape}, vocabulary 65, float32, eager, fresh weights, the same in both; {tokens} tokens are drawn
from one, at temperature 1 over the whole vocabulary, in turns (rounds: {rounds}). "Without cache"
computes the whole text again for every token; it is checked to draw the same tokens.
transformers is `generate(do_sample=True, top_k=0, use_cache=True)` with sdpa attention."""


def measure(quick: bool) -> Result:
    """All three with every number of threads."""
    tokens, rounds = (8, 2) if quick else (TOKENS, ROUNDS)
    contestants = _contestants(tokens)
    rows, medians = [], dict[str, float]()
    for number in THREADS:
        with threads(number):
            runs = take_turns(contestants, rounds=rounds)
        rates = {name: Spread(values).per(tokens) for name, values in runs.items()}
        medians = medians or {name: rate.median for name, rate in rates.items()}
        rows.append([str(number), *(rates[name].show() for name in contestants)])
    return Result(
        title="tokens per second of sampling, batch 1",
        table=Table(("threads", *(f"{name} tokens/s" for name in contestants)), rows),
        meaning=f"On one thread the cache makes sampling "
        f"{medians[CACHED] / medians[UNCACHED]:.1f} times as fast, which is "
        f"{medians[CACHED] / medians[THEIRS]:.1f} times the rate of transformers' generate.",
        method=METHOD.format(shape=SHAPE, tokens=tokens, rounds=rounds).replace("\n", " "),
    )


def _contestants(tokens: int) -> dict[str, Callable[[], float]]:
    ours = make_ours(SHAPE).eval()
    theirs = make_theirs(ours)
    theirs.eval()
    batch = torch.arange(32)[None]
    check_equal(ours, theirs, batch, batch + 1)
    if _draw(ours, tokens) != _draw_uncached(ours, tokens):
        raise RuntimeError("with and without the cache, other tokens are drawn")
    return {
        CACHED: timed(partial(_draw, ours, tokens)),
        UNCACHED: timed(partial(_draw_uncached, ours, tokens)),
        THEIRS: timed(partial(_draw_theirs, theirs, tokens)),
    }


def _draw(model: GPT, tokens: int) -> list[int]:
    """As `gptkit sample` does it."""
    drawn = generate(TorchDecoder(model, 1), PROMPT, tokens=tokens, sampling=SAMPLING)
    return [int(chosen[0]) for chosen in drawn]


@torch.inference_mode()
def _draw_uncached(model: GPT, tokens: int) -> list[int]:
    """The same tokens, each from the whole text so far."""
    text = list(PROMPT)
    for draw in range(tokens):
        logits = model.logits(torch.tensor([text]))[:, -1].numpy()
        text.append(int(choose(logits, uniforms(SAMPLING.seed, draw, 1), SAMPLING)[0]))
    return text[len(PROMPT) :]


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
