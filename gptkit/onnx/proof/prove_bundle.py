"""The proof of a kit's other graphs, and of what quantising costs: the validation loss."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from gptkit.data.order import walk
from gptkit.model.gpt import GPT
from gptkit.onnx.proof.compare import TOLERANCES, MaxError, wrong_tokens
from gptkit.onnx.runtime.decode_session import DecodeSession
from gptkit.onnx.runtime.metadata import Check
from gptkit.onnx.runtime.providers import open_session
from gptkit.plugin import IGNORE, Data
from gptkit.recipe.options import GPTConfig
from gptkit.sampling.rule import Floats, Ints, SamplingOptions

LOSS_TOKENS = 100_000
"""Of the validation split, from its beginning."""
SINGLE_STEPS = 24
"""Tokens fed one by one."""
DECODE_NOISE = {"float32": 1e-5, "float16": 1e-2, "int8": 5e-2, "int4": 5e-2}
"""How far `decode`'s logits may be from `step`'s, relative to the largest: other kernels add up
float32 in another order, and a difference in the last bit can turn a quantised activation."""


def prove_loss(path: Path, model: GPT, data: Data, dtype: str) -> Check:
    """How much more a `step` graph loses than the checkpoint, in nats per token."""
    session, loss = open_session(path, "cpu"), TOLERANCES[dtype].loss
    assert loss is not None
    ours = theirs = 0.0
    tokens = 0
    for x, y in walk(data.val, 8):
        counted = int((y != IGNORE).sum())
        logits, _ = _step(session, model.config, x.numpy())
        with torch.no_grad():
            theirs += float(model(x, y)) * counted
        nats = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits).flatten(0, 1), y.flatten(), ignore_index=IGNORE
        )
        ours += float(nats) * counted
        tokens += counted
        if tokens >= LOSS_TOKENS:
            break
    difference = (ours - theirs) / max(tokens, 1)
    return Check.of(
        "validation loss", difference, loss, "nats per token more",
        f"{theirs / max(tokens, 1):.4f} before, {tokens} tokens",
    )  # fmt: skip


def prove_step(path: Path, model: GPT, real: Ints, dtype: str) -> Iterator[Check]:
    """Compare a `step` graph with a checkpoint, at every position.

    Args:
        path: the exported file.
        model: the checkpoint's, on the CPU in float32, in evaluation mode.
        real: int64 (1, T), a text that the model drew.
        dtype: of the export.
    """
    session, config, tolerance = open_session(path, "cpu"), model.config, TOLERANCES[dtype]
    random = np.random.default_rng(2).integers(0, config.vocab_size, (2, config.block_size))
    with torch.no_grad():
        expected = [model.logits(torch.from_numpy(x)).numpy() for x in (random, real)]
    whole = MaxError("step: logits at once", tolerance)
    for name, x, logits in (("random", random, expected[0]), ("real", real, expected[1])):
        whole.update(name, _step(session, config, x)[0], logits)
    yield whole.check()
    parts = MaxError("step: logits in parts", tolerance)
    for name, sizes in _partitions(config.block_size):
        found = _in_parts(session, config, random[:, : sum(sizes)], sizes)
        parts.update(name, found, expected[0][:, : sum(sizes)])
    yield parts.check()
    padded = MaxError("step: padded rows", tolerance)
    length = max(1, config.block_size // 2)
    ids = np.concatenate([np.zeros((2, length), np.int64), random[:, :length]], axis=1)
    attended = np.repeat([[0, 1]], length, axis=1).repeat(2, axis=0)
    if config.block_size > 1:
        found, _ = _step(session, config, ids, attended=attended)
        padded.update("half of a row", found[:, length:], expected[0][:, :length])
    yield padded.check()


def prove_decode(folder: Path, model: GPT, dtype: str) -> Iterator[Check]:
    """Whether a kit's `decode` graph draws what the rule takes from its `step` graph's logits.

    Every decision counts that the largest difference between the two could not have turned.
    """
    session, config = DecodeSession(folder, "cpu"), model.config
    S = config.block_size
    prompts = np.random.default_rng(3).integers(0, config.vocab_size, (2, max(1, S // 4)))
    wrong, count = [], 0
    for settings in (
        SamplingOptions(temperature=0),
        SamplingOptions(seed=1),
        SamplingOptions(temperature=0.7, top_k=5, seed=2),
        SamplingOptions(top_p=0.8, seed=3),
    ):
        draws = min(S - prompts.shape[1] + 1, 32)
        drawn = session.stream(prompts, draws, settings, burst=draws)
        tokens = np.concatenate(list(drawn), axis=1)
        fed = np.concatenate([prompts, tokens[:, :-1]], axis=1)
        logits = _step(session.reader, config, fed)[0][:, prompts.shape[1] - 1 :]
        error = DECODE_NOISE[dtype] * max(1.0, float(np.abs(logits).max()))
        wrong += wrong_tokens(tokens, logits, settings, error)
        count += tokens.size
    yield Check.of(f"decode: {count} tokens", len(wrong), 0, "wrong tokens", *wrong[:1])


def _step(
    session: ort.InferenceSession,
    config: GPTConfig,
    ids: Ints,
    past: Sequence[NDArray[Any]] = (),
    *,
    attended: Ints | None = None,
) -> tuple[Floats, list[NDArray[Any]]]:
    """Feed ids (B, T) after a past: logits (B, T, vocab_size) and the present."""
    names = [x.name for x in session.get_inputs() if x.name.startswith("past_key_values.")]
    real = np.float16 if session.get_inputs()[-1].type == "tensor(float16)" else np.float32
    if not past:
        empty = np.zeros((len(ids), config.kv_heads, 0, config.head_size), real)
        past = [empty] * len(names)
    total = past[0].shape[2] + ids.shape[1]
    attended = np.ones((len(ids), total), np.int64) if attended is None else attended
    positions = np.maximum(attended.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
    feeds = {"input_ids": ids, "attention_mask": attended, "position_ids": positions}
    outputs = ["logits", *(name.replace("past_key_values", "present") for name in names)]
    logits, *present = session.run(outputs, {**feeds, **dict(zip(names, past, strict=True))})
    return logits, present


def _in_parts(
    session: ort.InferenceSession, config: GPTConfig, ids: Ints, sizes: list[int]
) -> Floats:
    """Logits (B, T, vocab_size) of ids that are fed part by part."""
    found: list[Floats] = []
    past: list[NDArray[Any]] = []
    start = 0
    for size in sizes:
        logits, past = _step(session, config, ids[:, start : start + size], past)
        found.append(logits)
        start += size
    return np.concatenate(found, axis=1)


def _partitions(block_size: int) -> Iterator[tuple[str, list[int]]]:
    """Ways to feed a text."""
    yield "one by one", [1] * min(block_size, SINGLE_STEPS)
    if block_size > 3:
        yield "three parts", [1, 2, block_size - 3]
