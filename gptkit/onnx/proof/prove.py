"""The proof that a graph `generate` is equal to its checkpoint, made with the file itself.

To get the logits behind the tokens, a copy of the graph has them as a second output; its nodes and
weights are those of the file. Torch computes the same positions without a cache.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from gptkit.model.gpt import GPT
from gptkit.onnx.graphs.scope import FLOAT, declare, typed
from gptkit.onnx.graphs.text import LOGITS
from gptkit.onnx.proof.compare import (
    LONGEST,
    ROUNDING,
    TOLERANCES,
    Case,
    MaxError,
    Prompts,
    compare_weights,
    reference,
    wrong_tokens,
)
from gptkit.onnx.runtime.generate_session import feeds
from gptkit.onnx.runtime.metadata import Comparison
from gptkit.onnx.runtime.providers import open_session
from gptkit.sampling.generate import generate
from gptkit.sampling.rule import Floats, Ints, SamplingOptions
from gptkit.sampling.torch_decoder import TorchDecoder

MAX_DRAWS = 320
"""Tokens drawn in the longest case; other cases begin near the end of the context."""
FEW_DRAWS = 96
"""The same where so many would not fill the context, three blocks of the graph's Loop."""
STOPS = 4
"""Single stop tokens that are tried."""
NO_LOGITS = "no_logits"
"""The second input of the copy: float32 (0, batch, vocab_size), which its Loop appends to."""


def prove_generate(
    path: Path, model: GPT, starts: Ints, dtype: str, prompts: Prompts
) -> Iterator[Comparison]:
    """Compare a graph `generate` with a checkpoint.

    Args:
        path: the exported file; a temporary copy is written beside it.
        model: the checkpoint's, on the CPU in float32, in evaluation mode.
        starts: int64 (N, T), what samples without a prompt start with.
        dtype: of the export.
        prompts: draws those of some cases.

    Yields:
        What was compared, whether it passed or not.
    """
    yield compare_weights(path, model, dtype)
    file = _File(path, model.config.vocab_size)
    cases = list(_cases(model, starts, prompts))
    yield from _compare_samples(file, model, cases, dtype)
    yield _compare_prefill(file, model, dtype, prompts)
    yield _compare_batch(file, cases[-1], dtype)
    yield _compare_stop_tokens(file, cases[-1])


class _File:
    """The exported file, and its copy with the logits as an output."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.session = open_session(path, "cpu")
        copy = path.with_name(f"with-logits-{path.name}")
        ir.save(with_logits(ir.load(path), vocab_size), copy)
        self.copy = open_session(copy, "cpu")
        copy.unlink()

    def tokens(self, case: Case, *, stop_tokens: Sequence[int] = ()) -> Ints:
        """The tokens that the file draws, (B, n)."""
        inputs = feeds(case.prompts, case.draws, case.sampling, stop_tokens=stop_tokens)
        return self.session.run(None, inputs)[0]

    def tokens_and_logits(self, case: Case) -> tuple[Ints, Floats]:
        """The tokens that the copy draws, (B, n), and their logits, (B, n, vocab_size)."""
        inputs = feeds(case.prompts, case.draws, case.sampling)
        none = np.zeros((0, len(case.prompts), self.vocab_size), np.float32)
        tokens, logits = self.copy.run(None, {**inputs, NO_LOGITS: none})
        return tokens, logits.swapaxes(0, 1)


def with_logits(model: ir.Model, vocab_size: int) -> ir.Model:
    """Add the logits to a graph `generate` as an output, float32 (generated, batch, vocab_size).

    The inner Loop collects those of a block, the outer one appends them to those before.
    """
    shape = [None, "batch", vocab_size]
    outer = _loop(model.graph)
    block = outer.attributes["body"].as_graph()
    inner = _loop(block)
    token = inner.attributes["body"].as_graph()
    logits = next(value for node in token for value in node.outputs if value.name == LOGITS)
    token.outputs.append(typed(logits, FLOAT, ["batch", vocab_size]))
    inner.resize_outputs(len(inner.outputs) + 1)
    inner.outputs[-1].name = "block_logits"
    before = declare("logits_before", FLOAT, shape)
    join = ir.node("Concat", [before, inner.outputs[-1]], {"axis": 0}, name="blocks/Concat_logits")
    block.append(join)
    block.inputs.append(before)
    block.outputs.append(typed(join.outputs[0], FLOAT, shape, name="logits_after"))
    none = declare(NO_LOGITS, FLOAT, shape)
    outer.resize_inputs(len(outer.inputs) + 1)
    outer.replace_input_with(len(outer.inputs) - 1, none)
    outer.resize_outputs(len(outer.outputs) + 1)
    model.graph.inputs.append(none)
    model.graph.outputs.append(typed(outer.outputs[-1], FLOAT, shape, name="all_logits"))
    return model


def _loop(graph: ir.Graph) -> ir.Node:
    return next(node for node in graph if node.op_type == "Loop")


def _cases(model: GPT, starts: Ints, prompts: Prompts) -> Iterator[Case]:
    """Drawn and sampled prompts, around the end of the context, greedy and sampled; a batch.

    Of a long context, around the end of its first part.
    """
    S, V = min(model.config.block_size, LONGEST), model.config.vocab_size
    random = np.random.default_rng(0)
    draws = min(S + S // 2 + 2, MAX_DRAWS) if S < MAX_DRAWS else FEW_DRAWS
    first = Case("without a prompt", starts[:1], draws, SamplingOptions(seed=1))
    yield first
    text = np.concatenate([first.prompts, torch_tokens(model, first)], axis=1)
    yield Case("greedy", text[:, : max(1, S // 3)], 16, SamplingOptions(temperature=0))
    at_the_end = prompts(random, 2, max(1, S - 2))
    yield Case("end of the context", at_the_end, 6, SamplingOptions(top_k=5, seed=2))
    longer = prompts(random, 1, S + 3)
    yield Case("longer than the context", longer, 3, SamplingOptions(top_p=0.9, seed=3))
    batch = np.concatenate([text[:, : max(1, S // 4)]] * 3)
    batch[1:] = prompts(random, 2, batch.shape[1])
    sampling = SamplingOptions(temperature=0.8, top_k=max(1, V // 2), top_p=0.95, seed=4)
    yield Case("batch", batch, 16, sampling)


def _compare_samples(
    file: _File, model: GPT, cases: list[Case], dtype: str
) -> Iterator[Comparison]:
    """The file's logits, and its tokens with those of the sampling rule and of torch."""
    tolerance = TOLERANCES[dtype]
    logits, count = MaxError("logits", tolerance), 0
    not_the_rules: list[str] = []
    not_torchs: list[str] = []
    for case in cases:
        tokens, own_logits = file.tokens_and_logits(case)
        if not np.array_equal(file.tokens(case), tokens):
            not_the_rules.append(f"{case.name}: the copy draws other tokens")
        expected = reference(model, case.prompts, tokens)
        logits.update(case.name, own_logits, expected)
        wrong = wrong_tokens(tokens, own_logits, case.sampling, ROUNDING)
        not_the_rules += [f"{case.name}, {place}" for place in wrong]
        count += tokens.size
        if tolerance.tokens and not np.array_equal(tokens, torch_tokens(model, case)):
            error = float(np.abs(own_logits - expected).max()) + ROUNDING
            wrong = wrong_tokens(tokens, expected, case.sampling, error)
            not_torchs += [f"{case.name}, {place}" for place in wrong]
    yield logits.result()
    yield _count_wrong(f"sampling rule, {count} tokens", not_the_rules)
    if tolerance.tokens:
        yield _count_wrong(f"gptkit sample, {count} tokens", not_torchs)


def _count_wrong(name: str, wrong: list[str]) -> Comparison:
    return Comparison.of(name, len(wrong), 0, "wrong tokens", *wrong[:1])


def _compare_prefill(file: _File, model: GPT, dtype: str, prompts: Prompts) -> Comparison:
    """The logits after prompts of many lengths, each fed at once."""
    S = min(model.config.block_size, LONGEST)
    error, random = MaxError("logits after prompts", TOLERANCES[dtype]), np.random.default_rng(1)
    lengths = sorted({round(n) for n in np.linspace(1, S, min(S, 12))})
    logits, expected = [], []
    for length in lengths:
        case = Case("", prompts(random, 1, length), 1, SamplingOptions())
        tokens, own_logits = file.tokens_and_logits(case)
        logits.append(own_logits)
        expected.append(reference(model, case.prompts, tokens))
    error.update(f"prompts of {lengths} tokens", np.concatenate(logits), np.concatenate(expected))
    return error.result()


def _compare_batch(file: _File, batch: Case, dtype: str) -> Comparison:
    """The file's logits for rows together with those for each row alone."""
    error, greedy = (
        MaxError("batch against single rows", TOLERANCES[dtype]),
        SamplingOptions(temperature=0),
    )
    _, together = file.tokens_and_logits(Case("", batch.prompts, 8, greedy))
    for row, prompt in enumerate(batch.prompts):
        _, alone = file.tokens_and_logits(Case("", prompt[None], 8, greedy))
        error.update(f"row {row}", alone[:, :1], together[row : row + 1, :1])
    return error.result()


def _compare_stop_tokens(file: _File, batch: Case) -> Comparison:
    """A row repeats the first stop token that it draws; the run ends once all rows have."""
    unstopped = file.tokens(batch)
    wrong = []
    early = np.unique(unstopped[:, : unstopped.shape[1] // 2 + 1]).tolist()
    for stops in [*([stop] for stop in early[:STOPS]), early[:2], unstopped[:, 0].tolist(), early]:
        if not np.array_equal(file.tokens(batch, stop_tokens=stops), stopped(unstopped, stops)):
            wrong.append(f"tokens {stops}")
    return Comparison.of("stop tokens", len(wrong), 0, "ignored", *wrong[:1])


def stopped(tokens: Ints, stops: Sequence[int]) -> Ints:
    """What a graph `generate` should give with stop tokens, from what it gives without, (B, n)."""
    places = np.isin(tokens, stops)
    last = np.where(places.any(axis=1), places.argmax(axis=1), tokens.shape[1] - 1)[:, None]
    repeated = np.take_along_axis(tokens, np.minimum(np.arange(tokens.shape[1]), last), axis=1)
    return repeated[:, : int(last.max()) + 1]


def torch_tokens(model: GPT, case: Case) -> Ints:
    """The tokens that `gptkit sample` draws from the checkpoint, (B, n)."""
    rows = len(case.prompts)
    decoder, prompts = TorchDecoder(model, rows), case.prompts.tolist()
    drawn = generate(decoder, prompts, tokens=case.draws, sampling=case.sampling, samples=rows)
    return np.stack(list(drawn), axis=1)
