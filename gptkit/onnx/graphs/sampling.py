"""The sampling rule of `gptkit.sampling.rule` as ONNX nodes: standard operators without state.

splitmix64 multiplies in int64, whose overflow gives the same bits as uint64: onnxruntime before
1.22 cannot multiply uint64.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gptkit.onnx.graphs.scope import (
    BOOL,
    FLOAT,
    INT64,
    UINT64,
    Dimensions,
    Scope,
    declare,
    typed,
)
from gptkit.sampling.rule import GOLDEN, MIN_TEMPERATURE, MIX_1, MIX_2

LAST = 2**62
"""The end of a Slice that goes up to the last element."""


@dataclass(frozen=True)
class SamplingInputs:
    """The sampling options as inputs of a graph."""

    temperature: ir.Value
    top_k: ir.Value
    top_p: ir.Value

    @classmethod
    def declare(cls, shape: Dimensions = ()) -> "SamplingInputs":
        """Inputs without defaults, which some runtimes do not support."""
        return cls(
            declare("temperature", FLOAT, shape),
            declare("top_k", INT64, shape),
            declare("top_p", FLOAT, shape),
        )

    @property
    def values(self) -> list[ir.Value]:
        """All of them, in the order of the graphs' inputs."""
        return [self.temperature, self.top_k, self.top_p]


class SamplingRule:
    """The rule; what does not depend on the logits is computed once.

    Args:
        g: the scope around every use of the rule.
        options: of the sampling.
        vocab_size: V below.
    """

    def __init__(self, g: Scope, options: SamplingInputs, vocab_size: int) -> None:
        self.last = vocab_size - 1
        # written so that a temperature that is not a number is 0, and such a top_p 1
        greedy = g.Not(g.GreaterOrEqual(options.temperature, MIN_TEMPERATURE))
        keeps_all = g.LessOrEqual(options.top_k, 0)
        k = g.Where(keeps_all, vocab_size, g.Min(options.top_k, vocab_size))
        k = g.Where(greedy, 1, k)
        self.k = g.Reshape(k, [1])
        self.temperature = g.Where(greedy, 1.0, options.temperature)
        smallest = float(np.finfo(np.float32).tiny)  # above 0, so that the first token is kept
        cuts = g.Less(options.top_p, 1.0)
        self.top_p = g.Where(cuts, g.Max(options.top_p, smallest), 1.0)
        self.sorts = g.Or(g.Less(k, vocab_size), cuts)
        """Whether the options need the logits sorted, bool."""

    def choose(self, g: Scope, logits: ir.Value, u: ir.Value) -> ir.Value:
        """One token per row, float32 (B, V) and (B, 1) to int64 (B, 1); sorts only if needed."""
        x = g.Div(logits, self.temperature)
        every, top = Scope(g), Scope(g)
        then_branch = top.graph(
            "from_top",
            [],
            [self._from_top(top, x, u)],
            doc="Draws from the k likeliest tokens, of these from the first whose probabilities "
            "add up to top_p.",
        )
        else_branch = every.graph(
            "from_all", [], [self._from_all(every, x, u)], doc="Draws from the whole vocabulary."
        )
        return g.If(self.sorts, then_branch=then_branch, else_branch=else_branch)

    def _from_all(self, g: Scope, x: ir.Value, u: ir.Value) -> ir.Value:
        with g.named("sampling.from_all"):
            chosen = invert(g, g.Softmax(x, axis=-1), u)
            return typed(g.Min(chosen, self.last), INT64, ["batch", 1])

    def _from_top(self, g: Scope, x: ir.Value, u: ir.Value) -> ir.Value:
        with g.named("sampling.from_top"):
            values, ids = g.TopK(x, self.k, axis=-1, outputs=2)
            rank = nucleus(g, g.Softmax(values, axis=-1), u, self.top_p)
            return typed(g.GatherElements(ids, rank, axis=1), INT64, ["batch", 1])


def nucleus(g: Scope, p: ir.Value, u: ir.Value, top_p: ir.Value) -> ir.Value:
    """The rank (B, 1) drawn from descending probabilities p (B, k), cut off at top_p."""
    before = g.Sub(g.CumSum(p, 1), p)
    keep = g.Less(before, top_p)
    rank = invert(g, g.Where(keep, p, 0.0), u)
    last = g.Sub(g.ReduceSum(g.Cast(keep, to=INT64), [1], keepdims=1), 1)
    return g.Min(rank, last)


def invert(g: Scope, p: ir.Value, u: ir.Value) -> ir.Value:
    """How many cumulative sums are <= u * total, (B, V) and (B, 1) to int64 (B, 1)."""
    sums = g.CumSum(p, 1)
    total = g.Gather(sums, [-1], axis=1)
    below = g.Cast(g.LessOrEqual(sums, g.Mul(u, total)), to=INT64)
    return g.ReduceSum(below, [1], keepdims=1)


def uniforms(g: Scope, seed: ir.Value, count: ir.Value) -> ir.Value:
    """The first random numbers of a seed's stream, as in `rule.uniforms`: float32 (count,)."""
    n = g.Range(1, g.Add(count, 1), 1)
    z = g.Cast(g.Add(seed, g.Mul(n, _as_int64(GOLDEN))), to=UINT64)
    z = _multiply(g, _xor_shifted(g, z, 30), MIX_1)
    z = _multiply(g, _xor_shifted(g, z, 27), MIX_2)
    z = g.BitShift(_xor_shifted(g, z, 31), np.uint64(40), direction="RIGHT")
    whole = g.Cast(g.Cast(z, to=INT64), to=FLOAT)
    return g.Mul(g.Add(whole, 0.5), 2.0**-24)


def all_true(g: Scope, flags: ir.Value) -> ir.Value:
    """Whether all of bool (B,) are true, bool ()."""
    return g.Cast(g.ReduceMin(g.Cast(flags, to=INT64), keepdims=0), to=BOOL)


def _xor_shifted(g: Scope, z: ir.Value, bits: int) -> ir.Value:
    """Z ^ (z >> bits)."""
    return g.BitwiseXor(z, g.BitShift(z, np.uint64(bits), direction="RIGHT"))


def _multiply(g: Scope, z: ir.Value, factor: int) -> ir.Value:
    """Z * factor modulo 2**64, uint64."""
    return g.Cast(g.Mul(g.Cast(z, to=INT64), _as_int64(factor)), to=UINT64)


def _as_int64(number: int) -> int:
    """The int64 with the bits of a uint64."""
    return number - 2**64 if number >= 2**63 else number
