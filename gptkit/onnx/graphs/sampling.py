"""The sampling rule of `gptkit.sampling.rule` as ONNX nodes: standard operators, no state, no host.

splitmix64's products are made in int64, whose overflow gives the same bits: onnxruntime before
1.22 multiplies no uint64.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gptkit.onnx.graphs.scope import BOOL, FLOAT, INT64, UINT64, Scope, declare, typed
from gptkit.sampling.rule import COLDEST

GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
LAST = 2**62
"""As the end of a Slice: to the end."""


@dataclass(frozen=True)
class SamplingInputs:
    """The scalars that say how tokens are chosen; inputs of a graph."""

    temperature: ir.Value
    top_k: ir.Value
    top_p: ir.Value

    @classmethod
    def declare(cls) -> "SamplingInputs":
        """As inputs that have to be given: not every runtime knows defaults."""
        return cls(declare("temperature", FLOAT), declare("top_k", INT64), declare("top_p", FLOAT))


class Rule:
    """The rule with everything computed that does not depend on the logits.

    Args:
        g: the scope around every use of the rule.
        settings: what is asked for.
        vocab_size: V below.
    """

    def __init__(self, g: Scope, settings: SamplingInputs, vocab_size: int) -> None:
        self.last = vocab_size - 1
        greedy = g.Less(settings.temperature, COLDEST)
        all_of_them = g.LessOrEqual(settings.top_k, 0)
        k = g.Where(all_of_them, vocab_size, g.Min(settings.top_k, vocab_size))
        k = g.Where(greedy, 1, k)
        self.k = g.Reshape(k, [1])
        self.temperature = g.Where(greedy, 1.0, settings.temperature)
        self.top_p = g.Max(settings.top_p, float(np.finfo(np.float32).tiny))  # keeps the first
        self.sorts = g.Or(g.Less(k, vocab_size), g.Less(settings.top_p, 1.0))

    def choose(self, g: Scope, logits: ir.Value, u: ir.Value) -> ir.Value:
        """One token per row, float32 (B, V) and (B,) to int64 (B,); sorts only if it has to."""
        x, u = g.Div(logits, self.temperature), g.Unsqueeze(u, [1])
        plain, top = Scope(g), Scope(g)
        branches = {
            "then_branch": top.graph("top", [], [self._choose_top(top, x, u)]),
            "else_branch": plain.graph("plain", [], [self._choose_any(plain, x, u)]),
        }
        return g.If(self.sorts, **branches)

    def _choose_any(self, g: Scope, x: ir.Value, u: ir.Value) -> ir.Value:
        """From the whole vocabulary, in its order."""
        chosen = invert(g, g.Softmax(x, axis=-1), u)
        return typed(g.Squeeze(g.Min(chosen, self.last), [1]), INT64, ["batch"])

    def _choose_top(self, g: Scope, x: ir.Value, u: ir.Value) -> ir.Value:
        """From the k likeliest, of these from the first whose mass reaches top_p."""
        values, ids = g.TopK(x, self.k, axis=-1, outputs=2)
        chosen = nucleus(g, g.Softmax(values, axis=-1), u, self.top_p)
        return typed(g.Squeeze(g.GatherElements(ids, chosen, axis=1), [1]), INT64, ["batch"])


def nucleus(g: Scope, p: ir.Value, u: ir.Value, top_p: ir.Value) -> ir.Value:
    """The place (B, 1) drawn from probabilities p (B, k) that are sorted, the largest first."""
    before = g.Sub(g.CumSum(p, 1), p)
    keep = g.Less(before, top_p)
    chosen = invert(g, g.Where(keep, p, 0.0), u)
    last = g.Sub(g.ReduceSum(g.Cast(keep, to=INT64), [1], keepdims=1), 1)
    return g.Min(chosen, last)


def invert(g: Scope, p: ir.Value, u: ir.Value) -> ir.Value:
    """The number of cumulative sums <= u * total, (B, V) and (B, 1) to int64 (B, 1)."""
    sums = g.CumSum(p, 1)
    total = g.Slice(sums, [-1], [LAST], [1])
    below = g.Cast(g.LessOrEqual(sums, g.Mul(u, total)), to=INT64)
    return g.ReduceSum(below, [1], keepdims=1)


def uniforms(g: Scope, seed: ir.Value, count: ir.Value) -> ir.Value:
    """The first random numbers of a seed's stream, float32 (count,); as `sampler.uniforms`."""
    n = g.Range(1, g.Add(count, 1), 1)
    z = g.Cast(g.Add(seed, g.Mul(n, _wrapped(GOLDEN))), to=UINT64)
    z = _times(g, _shift_in(g, z, 30), MIX_1)
    z = _times(g, _shift_in(g, z, 27), MIX_2)
    z = g.BitShift(_shift_in(g, z, 31), np.uint64(40), direction="RIGHT")
    whole = g.Cast(g.Cast(z, to=INT64), to=FLOAT)
    return g.Mul(g.Add(whole, 0.5), 2.0**-24)


def all_true(g: Scope, flags: ir.Value) -> ir.Value:
    """Whether every one of bool (B,) is true, bool ()."""
    return g.Cast(g.ReduceMin(g.Cast(flags, to=INT64), keepdims=0), to=BOOL)


def _shift_in(g: Scope, z: ir.Value, bits: int) -> ir.Value:
    """Mix z with its own upper bits."""
    return g.BitwiseXor(z, g.BitShift(z, np.uint64(bits), direction="RIGHT"))


def _times(g: Scope, z: ir.Value, factor: int) -> ir.Value:
    return g.Cast(g.Mul(g.Cast(z, to=INT64), _wrapped(factor)), to=UINT64)


def _wrapped(number: int) -> int:
    """A uint64 as the int64 with the same bits."""
    return number - 2**64 if number >= 2**63 else number
