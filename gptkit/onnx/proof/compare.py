"""Comparisons of an exported graph's weights, logits and tokens with the checkpoint's."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from gptkit.errors import ExportError, ModelFileError
from gptkit.model.gpt import GPT
from gptkit.onnx.graphs.source import ExportSource
from gptkit.onnx.graphs.weights import quantised
from gptkit.onnx.runtime.metadata import Comparison
from gptkit.onnx.runtime.providers import first_line
from gptkit.plugin import Data
from gptkit.sampling.generate import restart_length
from gptkit.sampling.rule import MIN_TEMPERATURE, Floats, Ints, SamplingOptions, choose, uniforms

LONGEST = 512
"""Tokens of the longest texts that are compared: attention takes the square of their memory."""
WINDOWS = 8
"""Of the data, of which prompts are made."""
ROUNDING = 2e-6
"""Difference of sums of float32 probabilities between implementations."""


RMS, LOSS = "rms error / logit std", "nats per token more"
COARSE = (RMS, LOSS)
"""Units of what a model may lose by fewer bits, even where the graph is right."""
REPORT = "please report it with the output of gptkit doctor"
MORE_BITS = (
    "A model may lose too much in so few bits: choose more, such as --dtype float32. If that is "
    f"refused, too, it is a bug in gptkit; {REPORT}"
)
OUR_FAULT = f"This is a bug in gptkit, or the weights are not finite; {REPORT}"


@dataclass(frozen=True)
class Tolerance:
    """How much an export in some precision may differ from the checkpoint."""

    logits: float
    rms: bool = False
    """Measure the root mean square of the logits' errors instead of the largest error."""
    loss: float | None = None
    """Limit for the increase of the validation loss, in nats; None: not measured."""
    tokens: bool = False
    """Whether the tokens have to be those that `gptkit sample` draws."""

    @property
    def unit(self) -> str:
        """The unit of `logits`."""
        return RMS if self.rms else "max error / max logit"


# What 8 bits cost grows with the depth: in 30 layers 0.06 to 0.1 of the logits, 0.013 nats.
TOLERANCES = {
    "float32": Tolerance(1e-4, tokens=True),
    "float16": Tolerance(3e-2),
    "int8": Tolerance(0.2, rms=True, loss=0.02),
    "int4": Tolerance(0.5, rms=True, loss=0.1),
}


Prompts = Callable[[np.random.Generator, int, int], Ints]
"""Draws rows of token ids, (rows, length), to compare with."""


def prompts_for(model: GPT, data: Data | None) -> Prompts:
    """Ids at random; of data, if there is any, what a text of it has one after the other.

    Few bits are judged by texts: where a model has learned nothing, a little noise may grow.
    """
    if data is None:
        vocab_size = model.config.vocab_size
        return lambda random, rows, length: random.integers(0, vocab_size, (rows, length))
    windows = data.val[torch.linspace(0, len(data.val) - 1, min(len(data.val), WINDOWS)).long()]
    stream = windows[0].flatten().numpy()

    def of_data(random: np.random.Generator, rows: int, length: int) -> Ints:
        starts = random.integers(0, len(stream), rows)
        return np.stack([np.resize(np.roll(stream, -start), length) for start in starts])

    return of_data


@dataclass(frozen=True)
class Case:
    """Prompts and options for a graph to draw with."""

    name: str
    prompts: Ints  # (B, T)
    draws: int
    sampling: SamplingOptions


@dataclass
class MaxError:
    """The largest of many errors, and where it was."""

    name: str
    tolerance: Tolerance
    measured: float = 0.0
    where: str = ""

    def update(self, place: str, logits: Floats, expected: Floats) -> None:
        """Compare logits (..., vocab_size) of a graph with those of the checkpoint."""
        errors = np.abs(logits - expected)
        if self.tolerance.rms:
            error = float(np.sqrt(np.square(errors).mean()) / max(expected.std(), 1e-9))
        else:
            error = float(errors.max() / max(1.0, np.abs(expected).max()))
        if not error <= self.measured:  # also true for NaN
            at = np.unravel_index(errors.argmax(), errors.shape)
            self.measured = error
            self.where = f"{place}, at {tuple(map(int, at))} of {errors.shape}"

    def result(self) -> Comparison:
        """The comparison for the proof."""
        return Comparison.of(
            self.name, self.measured, self.tolerance.logits, self.tolerance.unit, self.where
        )


@torch.no_grad()
def reference(model: GPT, prompts: Ints, tokens: Ints) -> Floats:
    """The checkpoint's logits behind each of `tokens` (B, n), drawn after prompts (B, T).

    Computed by torch without a cache, a whole context at a time; contexts are those of
    `gptkit.sampling.generate`.

    Returns:
        float32 (B, n, vocab_size).
    """
    block_size = model.config.block_size
    context, drawn, logits = prompts[:, -block_size:], 0, []
    while drawn < tokens.shape[1]:
        start = context.shape[1]
        count = min(block_size - start + 1, tokens.shape[1] - drawn)
        new = tokens[:, drawn : drawn + count]
        fed = torch.from_numpy(np.concatenate([context, new[:, :-1]], axis=1))
        logits.append(model.logits(fed)[:, start - 1 :].float().numpy())
        context = np.concatenate([context, new], axis=1)[:, -restart_length(block_size) :]
        drawn += count
    return np.concatenate(logits, axis=1)


def wrong_tokens(
    tokens: Ints, logits: Floats, sampling: SamplingOptions, error: float
) -> list[str]:
    """The tokens (B, n) that the sampling rule does not draw from logits (B, n, vocab_size).

    A difference that an error of that size in the logits could cause does not count.
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
    """Whether an error of that size in logits (1, V) could change which token is drawn."""
    ordered = np.sort(logits[0])[::-1]
    if sampling.temperature < MIN_TEMPERATURE:
        return bool(ordered[0] - ordered[min(1, len(ordered) - 1)] <= 2 * error)
    slack = np.float32(4 * error / sampling.temperature + ROUNDING)
    near = [choose(logits, np.clip(u + side, 0, 1), sampling)[0] for side in (-slack, slack)]
    k = sampling.top_k
    near_top_k = 0 < k < len(ordered) and ordered[k - 1] - ordered[k] <= 2 * error
    p = np.exp((ordered[: k or None] - ordered[0]) / sampling.temperature)
    mass = np.cumsum(p / p.sum())
    near_top_p = sampling.top_p < 1 and np.abs(mass - sampling.top_p).min() <= slack
    return bool(near[0] != near[1] or near_top_k or near_top_p)


def compare_weights(path: Path, model: GPT, dtype: str) -> Comparison:
    """How many tensors of a file differ from the checkpoint's in the file's precision."""
    source, wrong, numbers = ExportSource.of(model, dtype), [], 0
    last, parts = "", {}
    tensors, precision = source.tensors, source.precision
    graph = ir.load(path).graph
    for each in (graph, *graph.subgraphs()):
        for name, value in each.initializers.items():
            base, _, part = name.rpartition(".")
            if name in tensors:
                expected = precision.array(tensors[name])
            elif base in tensors and precision.bits:
                if base != last:  # the parts of a matrix follow each other
                    last, parts = base, quantised(base, tensors[base], precision)
                expected = parts[part]
            else:
                continue
            assert value.const_value is not None
            numbers += expected.size
            if not np.array_equal(value.const_value.numpy(), expected):
                wrong.append(name)
    name = f"{path.stem}: {numbers:,} weights"
    return Comparison.of(name, len(wrong), 0, "wrong tensors", *wrong[:1])


@contextmanager
def ort_errors_as_export_errors(name: str) -> Iterator[None]:
    """Raise an ExportError if onnxruntime fails to load or run a graph."""
    try:
        yield
    except (ModelFileError, RuntimeError) as error:  # RuntimeError: from runs with IO binding
        raise _not_running(name, error) from error
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime"):  # no common base class
            raise _not_running(name, error) from error
        raise


def _not_running(name: str, error: Exception) -> ExportError:
    return ExportError(
        f"{name} does not run: {first_line(error)}",
        hint="nothing was written. This is a bug in gptkit; please report it with the output of "
        "gptkit doctor",
    )


def raise_if_failed(name: str, comparisons: Iterable[Comparison]) -> None:
    """Raise an ExportError that names the comparisons that failed, if there are any."""
    if failed := [comparison for comparison in comparisons if not comparison.passed]:
        coarse = all(each.measured is not None and each.unit in COARSE for each in failed)
        raise ExportError(
            "\n".join(f"{name} is not equal to the checkpoint: {each}" for each in failed),
            hint="nothing was written. " + (MORE_BITS if coarse else OUR_FAULT),
        )
