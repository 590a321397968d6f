"""The proof of a bundle's other graphs, and the validation loss that quantising costs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from gptkit.data.order import walk
from gptkit.model.gpt import GPT
from gptkit.onnx.proof.compare import LONGEST, LOSS, TOLERANCES, MaxError, Prompts, wrong_tokens
from gptkit.onnx.runtime.decode_session import DecodeSession
from gptkit.onnx.runtime.metadata import Comparison
from gptkit.onnx.runtime.providers import open_session
from gptkit.plugin import IGNORE, Data
from gptkit.recipe.options import GPTConfig
from gptkit.sampling.rule import Floats, Ints, SamplingOptions

LOSS_TOKENS = 100_000
"""Tokens of the validation split that the loss is measured on, from its beginning."""
BATCH_LOGITS = 1 << 26
"""Logits that are computed at once for that, at most."""
SINGLE_STEPS = 24
"""Tokens that the graph `step` is fed one by one."""
DECODE_NOISE = {"float32": 1e-5, "float16": 1e-2, "int8": 5e-2, "int4": 5e-2}
"""How much the logits of `decode` may differ from those of `step`, relative to the largest: its
kernels sum float32 in another order, and the last bit can change a quantised activation."""


def prove_loss(path: Path, model: GPT, data: Data, dtype: str) -> Comparison:
    """By how much the validation loss of a graph `step` is above the checkpoint's, in nats."""
    session, limit = open_session(path, "cpu"), TOLERANCES[dtype].loss
    assert limit is not None
    own_sum = checkpoint_sum = 0.0
    tokens = 0
    most = max(1, BATCH_LOGITS // (data.block_size * model.config.vocab_size))
    for x, y in walk(data.val, min(8, most)):
        counted = int((y != IGNORE).sum())
        logits, _ = _step(session, model.config, x.numpy())
        with torch.no_grad():
            checkpoint_sum += float(model(x, y)) * counted
        loss = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits).flatten(0, 1), y.flatten(), ignore_index=IGNORE
        )
        own_sum += float(loss) * counted
        tokens += counted
        if tokens >= LOSS_TOKENS:
            break
    increase = (own_sum - checkpoint_sum) / max(tokens, 1)
    where = f"{checkpoint_sum / max(tokens, 1):.4f} before, {tokens} tokens"
    return Comparison.of("validation loss", increase, limit, LOSS, where)


def prove_step(
    path: Path, model: GPT, text: Ints, dtype: str, prompts: Prompts
) -> Iterator[Comparison]:
    """Compare a graph `step` with a checkpoint at every position.

    Args:
        path: the exported file.
        model: the checkpoint's, on the CPU in float32, in evaluation mode.
        text: int64 (1, T), sampled from the model.
        dtype: of the export.
        prompts: draws other texts.
    """
    session, config, tolerance = open_session(path, "cpu"), model.config, TOLERANCES[dtype]
    S = min(config.block_size, LONGEST)
    random = prompts(np.random.default_rng(2), 2, S)
    with torch.no_grad():
        of_random, of_text = (model.logits(torch.from_numpy(ids)).numpy() for ids in (random, text))
    at_once = MaxError("step: logits at once", tolerance)
    at_once.update("random tokens", _step(session, config, random)[0], of_random)
    at_once.update("sampled text", _step(session, config, text)[0], of_text)
    yield at_once.result()
    in_parts = MaxError("step: logits in parts", tolerance)
    for name, sizes in _partitions(S):
        logits = _in_parts(session, config, random[:, : sum(sizes)], sizes)
        in_parts.update(name, logits, of_random[:, : sum(sizes)])
    yield in_parts.result()
    padded = MaxError("step: padded rows", tolerance)
    if S > 1:
        half = S // 2
        ids = np.concatenate([np.zeros((2, half), np.int64), random[:, :half]], axis=1)
        attention_mask = np.repeat([[0, 1]], half, axis=1).repeat(2, axis=0)
        logits, _ = _step(session, config, ids, attention_mask=attention_mask)
        padded.update("half of a row", logits[:, half:], of_random[:, :half])
    yield padded.result()


def prove_decode(folder: Path, model: GPT, dtype: str) -> Iterator[Comparison]:
    """Whether a bundle's graph `decode` draws what the rule draws from the logits of `step`.

    Tokens that the differences between the two graphs could change do not count.
    """
    session, config = DecodeSession(folder, "cpu"), model.config
    S = min(config.block_size, LONGEST)
    prompts = np.random.default_rng(3).integers(0, config.vocab_size, (2, max(1, S // 4)))
    draws = min(S - prompts.shape[1] + 1, 32)
    wrong, count = [], 0
    for sampling in (
        SamplingOptions(temperature=0),
        SamplingOptions(seed=1),
        SamplingOptions(temperature=0.7, top_k=5, seed=2),
        SamplingOptions(top_p=0.8, seed=3),
    ):
        drawn = session.stream(prompts, draws, sampling, chunk=draws)
        tokens = np.concatenate(list(drawn), axis=1)
        fed = np.concatenate([prompts, tokens[:, :-1]], axis=1)
        logits = _step(session.step_session, config, fed)[0][:, prompts.shape[1] - 1 :]
        error = DECODE_NOISE[dtype] * max(1.0, float(np.abs(logits).max()))
        wrong += wrong_tokens(tokens, logits, sampling, error)
        count += tokens.size
    yield Comparison.of(f"decode: {count} tokens", len(wrong), 0, "wrong tokens", *wrong[:1])


def _step(
    session: ort.InferenceSession,
    config: GPTConfig,
    ids: Ints,
    past: Sequence[NDArray[Any]] = (),
    *,
    attention_mask: Ints | None = None,
) -> tuple[Floats, list[NDArray[Any]]]:
    """Run a graph `step` on ids (B, T) after a past: logits (B, T, vocab_size) and the present."""
    names = [x.name for x in session.get_inputs() if x.name.startswith("past_key_values.")]
    real = np.float16 if session.get_inputs()[-1].type == "tensor(float16)" else np.float32
    if not past:
        empty = np.zeros((len(ids), config.kv_heads, 0, config.head_size), real)
        past = [empty] * len(names)
    if attention_mask is None:
        attention_mask = np.ones((len(ids), past[0].shape[2] + ids.shape[1]), np.int64)
    positions = np.maximum(attention_mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
    feeds = {"input_ids": ids, "attention_mask": attention_mask, "position_ids": positions}
    outputs = ["logits", *(name.replace("past_key_values", "present") for name in names)]
    logits, *present = session.run(outputs, {**feeds, **dict(zip(names, past, strict=True))})
    return logits, present


def _in_parts(
    session: ort.InferenceSession, config: GPTConfig, ids: Ints, sizes: list[int]
) -> Floats:
    """Logits (B, T, vocab_size) of ids that are fed in parts of these sizes."""
    parts: list[Floats] = []
    past: list[NDArray[Any]] = []
    start = 0
    for size in sizes:
        logits, past = _step(session, config, ids[:, start : start + size], past)
        parts.append(logits)
        start += size
    return np.concatenate(parts, axis=1)


def _partitions(length: int) -> Iterator[tuple[str, list[int]]]:
    """Sizes of the parts in which tokens are fed, with a name."""
    yield "one by one", [1] * min(length, SINGLE_STEPS)
    if length > 3:
        yield "three parts", [1, 2, length - 3]
