"""How far an exported graph's logits and tokens may be from the checkpoint's, and the verdict."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from gptkit.errors import ExportError, ModelFileError
from gptkit.model.gpt import GPT
from gptkit.onnx.graphs.source import Source
from gptkit.onnx.graphs.weights import quantise
from gptkit.onnx.runtime.metadata import Check
from gptkit.onnx.runtime.providers import first_line
from gptkit.sampling.rule import COLDEST, Floats, Ints, SamplingOptions, choose, uniforms

ROUNDING = 2e-6
"""By how much sums of float32 probabilities differ between implementations."""


@dataclass(frozen=True)
class Tolerance:
    """How far from the checkpoint a file of some precision may be."""

    logits: float
    typical: bool = False
    """Compare the typical rather than the largest difference of logits."""
    loss: float | None = None
    """Of the validation loss, in nats; None where it need not be measured."""
    tokens: bool = False
    """Whether the tokens have to be those that `gptkit sample` draws."""

    @property
    def unit(self) -> str:
        """What the limit for logits means."""
        if self.typical:
            return "rms difference / standard deviation"
        return "largest difference / largest logit"


TOLERANCES = {
    "float32": Tolerance(1e-4, tokens=True),
    "float16": Tolerance(3e-2),
    "int8": Tolerance(0.05, typical=True, loss=0.01),
    "int4": Tolerance(0.5, typical=True, loss=0.1),
}


@dataclass(frozen=True)
class Case:
    """What a graph is asked to draw."""

    name: str
    prompts: Ints  # (B, T)
    draws: int
    sampling: SamplingOptions


@dataclass
class MaxError:
    """The largest of many differences, and where it was."""

    name: str
    tolerance: Tolerance
    measured: float = 0.0
    where: str = ""

    def update(self, place: str, ours: Floats, theirs: Floats) -> None:
        """Compare logits (..., vocab_size)."""
        difference = np.abs(ours - theirs)
        if self.tolerance.typical:
            found = float(np.sqrt(np.square(difference).mean()) / max(theirs.std(), 1e-9))
        else:
            found = float(difference.max() / max(1.0, np.abs(theirs).max()))
        if not found <= self.measured:  # NaN is the worst
            at = np.unravel_index(difference.argmax(), difference.shape)
            self.measured = found
            self.where = f"{place}, at {tuple(map(int, at))} of {difference.shape}"

    def check(self) -> Check:
        """As a line of the proof."""
        return Check.of(
            self.name, self.measured, self.tolerance.logits, self.tolerance.unit, self.where
        )


@torch.no_grad()
def reference(model: GPT, prompts: Ints, tokens: Ints) -> Floats:
    """Torch's logits of each of `tokens` (B, n), which were drawn after prompts (B, T).

    Computed without a cache, a context at a time, as `gptkit.sampling.generate` fills them.
    float32 (B, n, vocab_size).
    """
    block_size = model.config.block_size
    context, drawn, found = prompts[:, -block_size:], 0, []
    while drawn < tokens.shape[1]:
        start = context.shape[1]
        count = min(block_size - start + 1, tokens.shape[1] - drawn)
        new = tokens[:, drawn : drawn + count]
        fed = torch.from_numpy(np.concatenate([context, new[:, :-1]], axis=1))
        found.append(model.logits(fed)[:, start - 1 :].float().numpy())
        context = np.concatenate([context, new], axis=1)[:, -max(1, block_size // 2) :]
        drawn += count
    return np.concatenate(found, axis=1)


def wrong_tokens(
    tokens: Ints, logits: Floats, sampling: SamplingOptions, error: float
) -> list[str]:
    """Where tokens (B, n) are not what the sampling rule takes from logits (B, n, vocab_size).

    Decisions that an error of that size in the logits could turn are passed over.
    """
    wrong = []
    for draw in range(tokens.shape[1]):
        u = uniforms(sampling.seed, draw, len(tokens))
        expected = choose(logits[:, draw], u, sampling)
        for row in np.flatnonzero(tokens[:, draw] != expected):
            if not too_close(logits[row : row + 1, draw], u[row : row + 1], sampling, error):
                wrong.append(f"draw {draw} of row {row}: {tokens[row, draw]}, not {expected[row]}")
    return wrong


def too_close(logits: Floats, u: Floats, sampling: SamplingOptions, error: float) -> bool:
    """Whether an error of that size in logits (1, V) could change the token that is drawn."""
    ordered = np.sort(logits[0])[::-1]
    if sampling.temperature < COLDEST:
        return bool(ordered[0] - ordered[min(1, len(ordered) - 1)] <= 2 * error)
    slack = np.float32(4 * error / sampling.temperature + ROUNDING)
    near = [choose(logits, np.clip(u + side, 0, 1), sampling)[0] for side in (-slack, slack)]
    k = sampling.top_k
    on_border = 0 < k < len(ordered) and ordered[k - 1] - ordered[k] <= 2 * error
    p = np.exp((ordered[: k or None] - ordered[0]) / sampling.temperature)
    mass = np.cumsum(p / p.sum())
    on_nucleus = sampling.top_p < 1 and np.abs(mass - sampling.top_p).min() <= slack
    return bool(near[0] != near[1] or on_border or on_nucleus)


def check_weights(path: Path, model: GPT, dtype: str) -> Check:
    """How many of a file's weights are not the checkpoint's, in the file's precision."""
    source, wrong, numbers = Source.of(model, dtype), [], 0
    tensors, precision = source.tensors, source.precision
    graph = ir.load(path).graph
    for held in (graph, *graph.subgraphs()):
        for name, value in held.initializers.items():
            base, _, part = name.rpartition(".")
            if name in tensors:
                expected = precision.array(tensors[name])
            elif base in tensors and precision.bits:
                packed, scales = quantise(tensors[base], precision.bits)
                expected = packed if part == "quantised" else precision.array(scales)
            else:
                continue
            assert value.const_value is not None
            numbers += expected.size
            if not np.array_equal(value.const_value.numpy(), expected):
                wrong.append(name)
    kind = path.stem
    return Check.of(f"{kind}: {numbers:,} weights", len(wrong), 0, "other tensors", *wrong[:1])


@contextmanager
def ort_errors_as_export_errors(name: str) -> Iterator[None]:
    """Turn onnxruntime's refusal to load or run a graph into an ExportError."""
    try:
        yield
    except (ModelFileError, RuntimeError) as error:  # the latter from bound runs
        raise _not_running(name, error) from error
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime"):  # they have no common class
            raise _not_running(name, error) from error
        raise


def _not_running(name: str, error: Exception) -> ExportError:
    return ExportError(
        f"{name} does not run: {first_line(error)}",
        hint="nothing was written. This is a fault of gptkit; gptkit doctor shows the versions "
        "that a report needs",
    )


def raise_if_failed(name: str, checks: Iterable[Check]) -> list[Check]:
    """The checks, if all of them passed.

    Raises:
        ExportError: says which did not, and where.
    """
    checks = list(checks)
    failed = [check for check in checks if not check.passed]
    if failed:
        raise ExportError(
            "\n".join(f"{name} is not equal to the checkpoint: {check}" for check in failed),
            hint="nothing was written. This is a fault of gptkit or of the weights; "
            "gptkit doctor shows the versions that a report needs",
        )
    return checks
