"""GPTGraph: the layers of a GPT as ONNX nodes; attention is left to a `CacheGraph`.

Shapes: B sequences, T tokens, N = B * T, C = n_embd, nh query heads, nkv key and value heads,
hs = head size. The formulas are those of `gptkit.model.blocks` and `gptkit.model.gpt`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, assert_never

import numpy as np
import onnx_ir as ir

from gptkit.model import rotary
from gptkit.onnx.graphs.scope import FLOAT, FLOAT16, Scope
from gptkit.onnx.graphs.source import ExportSource
from gptkit.onnx.graphs.weights import Weights
from gptkit.recipe.options import GPTConfig


class CacheGraph(Protocol):
    """Attention over the cached tokens and the new ones."""

    def attend(self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """Add k and v (B, nkv, T, hs) to the cache; the attention of q (B, nh, T, hs) over it."""


@dataclass(frozen=True)
class Shapes:
    """Shapes that depend on the number of new tokens, int64."""

    by_token: ir.Value
    """(3,): (B, T, C)."""
    by_head: ir.Value
    """(4,): (B, T, nh + 2 * nkv, hs)."""

    @classmethod
    def of(cls, g: Scope, ids: ir.Value, config: GPTConfig) -> "Shapes":
        """For ids (B, T)."""
        heads = config.n_head + 2 * config.kv_heads
        with g.named("shape"):
            shape = g.Shape(ids)
            by_token = g.Concat(shape, [config.n_embd], axis=0)
            return cls(by_token, g.Concat(shape, [heads, config.head_size], axis=0))


@dataclass(frozen=True)
class NewTokens:
    """What all layers need to know about the new tokens."""

    shapes: Shapes
    cos: ir.Value | None
    """Of the rotary angles, (T, hs / 2) or (B, 1, T, hs / 2); None without rotary positions."""
    sin: ir.Value | None


class GPTGraph:
    """Writes a GPT into a scope, nodes named after the modules of `gptkit.model.gpt`.

    Args:
        source: the model.
        g: the scope, which also gets the weights.
    """

    def __init__(self, source: ExportSource, g: Scope) -> None:
        self.source, self.config, self.g = source, source.config, g
        self.weights = Weights(source.tensors, source.precision, g)

    def features(
        self, ids: ir.Value, positions: ir.Value, cache: CacheGraph, shapes: Shapes
    ) -> ir.Value:
        """The residual stream before the last norm.

        Args:
            ids: int64 (B, T).
            positions: int64 (T,), or (B, T) if they differ between the rows.
            cache: attends over the cached tokens and these.
            shapes: those of the ids.

        Returns:
            (B, T, C).
        """
        g, config = self.g, self.config
        x = self._embed(ids, positions)  # (B, T, C)
        with g.named("shape"):
            x = g.Reshape(x, [-1, config.n_embd])  # (N, C): Gemm takes matrices
        tokens = NewTokens(shapes, *self._angles(positions))
        for i in range(config.n_layer):
            y = self._attention(i, self._norm(x, f"h.{i}.ln_1"), tokens, cache)
            with g.named(f"h.{i}"):
                x = g.Add(x, y)
            y = self._mlp(i, self._norm(x, f"h.{i}.ln_2"))
            with g.named(f"h.{i}"):
                x = g.Add(x, y)
        with g.named("shape"):
            return g.Reshape(x, shapes.by_token)

    def logits(self, features: ir.Value) -> ir.Value:
        """The last norm and the head, (N, C) to float32 (N, vocab_size)."""
        x = self._norm(features, "ln_f")
        with self.g.named("lm_head"):
            logits = self.weights.linear(x, "wte" if self.config.tie_embeddings else "lm_head")
            half = self.weights.precision.real != FLOAT
            logits = self.g.Cast(logits, to=FLOAT) if half else logits
        if (cap := self.config.logit_softcap) is None:
            return logits
        with self.g.named("cap"):
            return self.g.Mul(self.g.Tanh(self.g.Div(logits, cap)), cap)

    def _embed(self, ids: ir.Value, positions: ir.Value) -> ir.Value:
        """The residual stream before the first block, (B, T) to (B, T, C)."""
        g, tied = self.g, self.config.tie_embeddings
        with g.named("wte"):
            x = self.weights.embedding("wte.weight", ids, quantised=tied)
        match self.config.position:
            case "learned":
                with g.named("position.wpe"):
                    x = g.Add(x, g.Gather(self.weights["position.wpe.weight"], positions))
            case "rotary":
                pass
            case unknown:
                assert_never(unknown)
        if self.config.embed_norm:
            x = self._rms_norm(x, self.config.n_embd, "embed_norm")
        return x

    def _attention(self, i: int, x: ir.Value, tokens: NewTokens, cache: CacheGraph) -> ir.Value:
        """(N, C) to (N, C)."""
        g, name = self.g, f"h.{i}.attn"
        x = self._linear(x, f"{name}.qkv")
        with g.named(name):
            qkv = g.Transpose(g.Reshape(x, tokens.shapes.by_head), perm=[0, 2, 1, 3])
        q, k, v = self._split_heads(qkv, tokens, name)
        with g.named(name):
            y = g.Transpose(cache.attend(i, q, k, v), perm=[0, 2, 1, 3])  # (B, T, nh, hs)
            y = g.Reshape(y, [-1, self.config.qkv_sizes[0]])
        return self._linear(y, f"{name}.proj")

    def _split_heads(self, qkv: ir.Value, tokens: NewTokens, name: str) -> Sequence[ir.Value]:
        """Queries, keys and values of (B, nh + 2 * nkv, T, hs), normalised and rotated."""
        g, config = self.g, self.config
        nh, nkv, size = config.n_head, config.kv_heads, config.head_size
        if not config.qk_norm and tokens.cos is None:
            with g.named(name):
                return g.Split(qkv, [nh, nkv, nkv], axis=1, outputs=3)
        with g.named(name):
            qk, v = g.Split(qkv, [nh + nkv, nkv], axis=1, outputs=2)
        if config.qk_norm:
            qk = self._rms_norm(qk, size, f"{name}.qk_norm")
        if config.qk_norm_scale:
            with g.named(f"{name}.qk_norm"):
                qk = g.Mul(qk, self._head_scales(name))
        if tokens.cos is not None:
            qk = self._rotate(qk, tokens, f"{name}.rotary")
        with g.named(name):
            q, k = g.Split(qk, [nh, nkv], axis=1, outputs=2)
        return q, k, v

    def _head_scales(self, name: str) -> ir.Value:
        """The learned scales of each query's and key's norm, (nh + nkv, 1, hs)."""
        g, config = self.weights.scope, self.config  # computed beside the weights, once
        heads = {"q_norm": config.n_head, "k_norm": config.kv_heads}
        with g.named(f"{name}.qk_norm"):
            scales = [
                g.Expand(self.weights[f"{name}.{norm}.weight"], [count, 1, config.head_size])
                for norm, count in heads.items()
            ]
            return g.Concat(*scales, axis=0)

    def _mlp(self, i: int, x: ir.Value) -> ir.Value:
        """(N, C) to (N, C)."""
        g = self.g
        x = self._linear(x, f"h.{i}.mlp.up")
        with g.named(f"h.{i}.mlp.act"):
            match self.config.mlp:
                case "gelu":
                    x = g.Gelu(x)
                case "gelu_tanh":
                    x = g.Gelu(x, approximate="tanh")
                case "relu2":
                    x = g.Relu(x)
                    x = g.Mul(x, x)
                case "swiglu":
                    gate, value = g.Split(x, axis=-1, num_outputs=2, outputs=2)
                    x = g.Mul(g.Mul(gate, g.Sigmoid(gate)), value)
                case unknown:
                    assert_never(unknown)
        return self._linear(x, f"h.{i}.mlp.proj")

    def _linear(self, x: ir.Value, name: str) -> ir.Value:
        with self.g.named(name):
            return self.weights.linear(x, name)

    def _norm(self, x: ir.Value, name: str) -> ir.Value:
        """A norm with a learned scale."""
        scale = self.weights[f"{name}.weight"]
        with self.g.named(name):
            match self.config.norm:
                case "layernorm":
                    bias = self.weights.get(f"{name}.bias")
                    return self.g.LayerNormalization(
                        *(x, scale, bias), axis=-1, epsilon=self.config.norm_eps
                    )
                case "rmsnorm":
                    return self._rms(x, scale)
                case unknown:
                    assert_never(unknown)

    def _rms_norm(self, x: ir.Value, width: int, name: str) -> ir.Value:
        """RMS norm over the last dimension, without a learned scale."""
        with self.g.named(name):
            return self._rms(x, self.weights.constant(f"ones.{width}", np.ones(width)))

    def _rms(self, x: ir.Value, scale: ir.Value) -> ir.Value:
        """RMS norm over the last dimension, in operators that onnxruntime fuses."""
        g = self.g
        half = self.weights.precision.real == FLOAT16
        wide = g.Cast(x, to=FLOAT) if half else x  # squares may overflow in float16
        mean = g.ReduceMean(g.Pow(wide, 2.0), [-1], keepdims=1)
        normal = g.Div(wide, g.Sqrt(g.Add(mean, self.config.norm_eps)))
        return g.Mul(g.Cast(normal, to=FLOAT16) if half else normal, scale)

    def _angles(self, positions: ir.Value) -> tuple[ir.Value | None, ir.Value | None]:
        """Cosine and sine of the rotary angles, looked up once for all layers."""
        if self.config.position != "rotary":
            return None, None
        g, angles = self.g, rotary.angles(self.config)
        tables = {"cos": np.cos(angles), "sin": np.sin(angles)}
        with g.named("position"):
            cos, sin = (
                g.Gather(self.weights.constant(f"rotary.{name}", tables[name]), positions)
                for name in ("cos", "sin")
            )
            if positions.shape is None or len(positions.shape) == 1:
                return cos, sin  # (T, hs / 2)
            return g.Unsqueeze(cos, [1]), g.Unsqueeze(sin, [1])  # (B, 1, T, hs / 2)

    def _rotate(self, x: ir.Value, tokens: NewTokens, name: str) -> ir.Value:
        """Rotate x (B, heads, T, hs) by the angles."""
        g, cos, sin = self.g, tokens.cos, tokens.sin
        with g.named(name):
            a, b = g.Split(x, axis=-1, num_outputs=2, outputs=2)
            first = g.Sub(g.Mul(a, cos), g.Mul(b, sin))
            second = g.Add(g.Mul(b, cos), g.Mul(a, sin))
            return g.Concat(first, second, axis=-1)


def checked_ids(g: Scope, ids: ir.Value, vocab_size: int) -> ir.Value:
    """Ids int64 as they are; an id below 0 or from vocab_size on ends the run with an error.

    ONNX has no operator for it, and operators with quantised weights read any id. So ids are looked
    up in a list of all of them; a negative one, which would count from the end, is made too small.
    """
    with g.named("vocabulary"):
        below = g.Sub(ids, vocab_size)
        own = g.Where(g.Less(ids, 0), below, ids)
        return g.Gather(g.Range(0, vocab_size, 1), own)
