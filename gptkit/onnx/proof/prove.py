"""The proof that a `generate` graph is equal to its checkpoint; it runs on the file itself.

To see what the graph thinks while it draws, its logits are made an output of a copy; nodes and
weights are those of the file. Torch computes the same positions without a cache.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from gptkit.model.gpt import GPT
from gptkit.onnx.graphs.scope import FLOAT, declare, typed
from gptkit.onnx.proof.compare import (
    ROUNDING,
    TOLERANCES,
    Case,
    MaxError,
    check_weights,
    reference,
    wrong_tokens,
)
from gptkit.onnx.runtime.generate_session import feeds
from gptkit.onnx.runtime.metadata import Check
from gptkit.onnx.runtime.providers import open_session
from gptkit.sampling.generate import generate
from gptkit.sampling.rule import Floats, Ints, SamplingOptions
from gptkit.sampling.torch_decoder import TorchDecoder

MOST_DRAWS = 320
"""Tokens drawn after a single start; where a long context ends is looked at on its own."""


def prove_generate(path: Path, model: GPT, starts: Ints, dtype: str) -> Iterator[Check]:
    """Compare a `generate` graph with a checkpoint.

    Args:
        path: the exported file; a copy is written beside it for a while.
        model: the checkpoint's, on the CPU in float32, in evaluation mode.
        starts: int64 (N, T), how samples start.
        dtype: of the export.

    Yields:
        What was measured, passed or not.
    """
    yield check_weights(path, model, dtype)
    subject = _Subject(path, model.config.vocab_size)
    cases = list(_cases(model, starts))
    yield from _check_draws(subject, model, cases, dtype)
    yield _check_prefill(subject, model, dtype)
    yield _check_batch(subject, cases[-1], dtype)
    yield _check_stop(subject, cases[-1])


class _Subject:
    """The file, and the copy that tells its logits."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.file = open_session(path, "cpu")
        copy = path.with_name(f"watched-{path.name}")
        ir.save(watched(ir.load(path), vocab_size), copy)
        self.copy = open_session(copy, "cpu")
        copy.unlink()

    def tokens(self, case: Case) -> Ints:
        """What the file draws, (B, n)."""
        return _run(self.file, case)[0]

    def tokens_and_logits(self, case: Case) -> tuple[Ints, Floats]:
        """What the copy draws, (B, n), and the logits behind it, (B, n, vocab_size)."""
        nothing = np.zeros((0, len(case.prompts), self.vocab_size), np.float32)
        tokens, logits = _run(self.copy, case, watched_start=nothing)
        return tokens, logits.swapaxes(0, 1)


def _run(session: ort.InferenceSession, case: Case, **more: Floats) -> list[np.ndarray]:
    return session.run(None, {**feeds(case.prompts, case.draws, case.sampling), **more})


def watched(model: ir.Model, vocab_size: int) -> ir.Model:
    """Give a `generate` graph another output, its logits float32 (generated, batch, vocab_size).

    The inner Loop collects them, the outer one joins them; what it starts with is an input.
    """
    shape = [None, "batch", vocab_size]
    outer = _loop_of(model.graph)
    block = outer.attributes["body"].as_graph()
    inner = _loop_of(block)
    token = inner.attributes["body"].as_graph()
    logits = next(v for node in token for v in node.outputs if v.name == "logits")
    token.outputs.append(typed(logits, FLOAT, ["batch", vocab_size]))
    inner.resize_outputs(len(inner.outputs) + 1)
    inner.outputs[-1].name = "watched_block"
    before = declare("watched_before", FLOAT, shape)
    join = ir.node("Concat", [before, inner.outputs[-1]], {"axis": 0})
    block.append(join)
    block.inputs.append(before)
    block.outputs.append(typed(join.outputs[0], FLOAT, shape, name="watched_after"))
    start = declare("watched_start", FLOAT, shape)
    outer.resize_inputs(len(outer.inputs) + 1)
    outer.replace_input_with(len(outer.inputs) - 1, start)
    outer.resize_outputs(len(outer.outputs) + 1)
    model.graph.inputs.append(start)
    model.graph.outputs.append(typed(outer.outputs[-1], FLOAT, shape, name="watched"))
    return model


def _loop_of(graph: ir.Graph) -> ir.Node:
    return next(node for node in graph if node.op_type == "Loop")


def _cases(model: GPT, starts: Ints) -> Iterator[Case]:
    """Random and real prompts, around the edge of the context, greedy and sampled."""
    S, V = model.config.block_size, model.config.vocab_size
    random = np.random.default_rng(0)
    first = Case(
        "from the start", starts[:1], min(S + S // 2 + 2, MOST_DRAWS), SamplingOptions(seed=1)
    )
    yield first
    real = np.concatenate([first.prompts, torch_tokens(model, first)], axis=1)
    yield Case("greedy", real[:, : max(1, S // 3)], 16, SamplingOptions(temperature=0))
    edge = random.integers(0, V, (2, max(1, S - 2)))
    yield Case("edge of the context", edge, 6, SamplingOptions(top_k=5, seed=2))
    beyond = random.integers(0, V, (1, S + 3))
    yield Case("longer than the context", beyond, 3, SamplingOptions(top_p=0.9, seed=3))
    batch = np.concatenate([real[:, : max(1, S // 4)]] * 3)
    batch[1:] = random.integers(0, V, batch[1:].shape)
    settings = SamplingOptions(temperature=0.8, top_k=max(1, V // 2), top_p=0.95, seed=4)
    yield Case("batch", batch, 16, settings)


def _check_draws(subject: _Subject, model: GPT, cases: list[Case], dtype: str) -> Iterator[Check]:
    """Logits along what the file draws, and whether it draws what the rule and torch draw."""
    tolerance = TOLERANCES[dtype]
    logits, broken, other, count = MaxError("logits", tolerance), [], [], 0
    for case in cases:
        tokens, seen = subject.tokens_and_logits(case)
        if not np.array_equal(subject.tokens(case), tokens):
            broken.append(f"{case.name}: two runs differ")
        expected = reference(model, case.prompts, tokens)
        logits.update(case.name, seen, expected)
        wrong = wrong_tokens(tokens, seen, case.sampling, ROUNDING)
        broken += [f"{case.name}, {place}" for place in wrong]
        count += tokens.size
        if tolerance.tokens and not np.array_equal(tokens, torch_tokens(model, case)):
            error = float(np.abs(seen - expected).max()) + ROUNDING
            wrong = wrong_tokens(tokens, expected, case.sampling, error)
            other += [f"{case.name}, {place}" for place in wrong]
    yield logits.check()
    yield Check.of(f"sampling rule, {count} tokens", len(broken), 0, "wrong tokens", *broken[:1])
    if tolerance.tokens:
        yield Check.of(f"gptkit sample, {count} tokens", len(other), 0, "other tokens", *other[:1])


def _check_prefill(subject: _Subject, model: GPT, dtype: str) -> Check:
    """The logits after prompts of many lengths, each fed at once."""
    S, V = model.config.block_size, model.config.vocab_size
    worst, random = MaxError("logits after prompts", TOLERANCES[dtype]), np.random.default_rng(1)
    lengths = sorted({round(n) for n in np.linspace(1, S, min(S, 12))})
    found, expected = [], []
    for length in lengths:
        case = Case("", random.integers(0, V, (1, length)), 1, SamplingOptions())
        tokens, seen = subject.tokens_and_logits(case)
        found.append(seen)
        expected.append(reference(model, case.prompts, tokens))
    worst.update(f"prompts of {lengths} tokens", np.concatenate(found), np.concatenate(expected))
    return worst.check()


def _check_batch(subject: _Subject, batch: Case, dtype: str) -> Check:
    """Rows together against rows alone, on the file's own logits."""
    worst = MaxError("batch against single rows", TOLERANCES[dtype])
    _, together = subject.tokens_and_logits(
        Case("", batch.prompts, 8, SamplingOptions(temperature=0))
    )
    for row, prompt in enumerate(batch.prompts):
        case = Case(f"row {row}", prompt[None], 8, SamplingOptions(temperature=0))
        _, alone = subject.tokens_and_logits(case)
        worst.update(case.name, alone[:, :1], together[row : row + 1, :1])
    return worst.check()


def _check_stop(subject: _Subject, batch: Case) -> Check:
    """A stop token ends its row, and the run when it ended all of them."""
    free = subject.tokens(batch)
    wrong = []
    for stop in np.unique(free[:, : free.shape[1] // 2 + 1]).tolist():
        inputs = feeds(batch.prompts, batch.draws, batch.sampling, stop_token=stop)
        (found,) = subject.file.run(None, inputs)
        ended = (free == stop).cumsum(axis=1) > 0
        expected = np.where(ended, stop, free)
        if ended.any(axis=1).all():
            expected = expected[:, : int(ended.argmax(axis=1).max()) + 1]
        if not np.array_equal(found, expected):
            wrong.append(f"token {stop}")
    return Check.of("stop tokens", len(wrong), 0, "of them not kept", *wrong[:1])


def torch_tokens(model: GPT, case: Case) -> Ints:
    """What `gptkit sample` draws from the checkpoint, (B, n)."""
    rows = len(case.prompts)
    drawn = generate(
        TorchDecoder(model, rows), case.prompts.tolist(),
        tokens=case.draws, sampling=case.sampling, samples=rows,
    )  # fmt: skip
    return np.stack(list(drawn), axis=1)
