"""The layers of a GPT as ONNX nodes; how attention remembers the past is left to a `Memory`.

Shapes: B sequences, T tokens, N = B * T, C = n_embd, nh query heads, nkv key and value heads,
hs = C / nh. The formulas are those of `gptkit.model.blocks` and `gptkit.model.gpt`.
"""

import math
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptkit.model.blocks import NORM_EPS, ROPE_THETA
from gptkit.onnx.graphs.scope import FLOAT, FLOAT16, Scope
from gptkit.onnx.graphs.source import Source
from gptkit.onnx.graphs.weights import Weights
from gptkit.recipe.options import GPTConfig

MODERN_OPSET = 23
"""From here on ONNX has Attention, RMSNormalization and RotaryEmbedding."""
MASK = {"visible": 0.0, "hidden": -3e4}
"""Added to scores; float16 has the number, and its exponential is 0."""


class Memory(Protocol):
    """Attention over the past and the present."""

    def attend(self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """Remember k and v (B, nkv, T, hs); what q (B, nh, T, hs) reads, (B, nh, T, hs)."""


class Decoder:
    """Writes a GPT into a scope.

    Args:
        source: the model.
        g: the scope, which also gets the weights.
    """

    def __init__(self, source: Source, g: Scope) -> None:
        self.config, self.opset, self.g = source.config, source.opset, g
        self.weights = Weights(source.tensors, source.precision, g)

    def features(self, ids: ir.Value, positions: ir.Value, memory: Memory) -> ir.Value:
        """The residual stream before the last norm.

        Args:
            ids: int64 (B, T).
            positions: int64 (T,), or (B, T) where rows differ.
            memory: what attention reads.

        Returns:
            (B, T, C).
        """
        g, config = self.g, self.config
        x = self._embedding(ids)  # (B, T, C)
        if config.position == "learned":
            x = g.Add(x, g.Gather(self.weights["position.wpe.weight"], positions))
        if config.embed_norm:
            x = self._plain_rms(x, config.n_embd)
        shape = g.Shape(ids)
        heads = config.n_head + 2 * config.kv_heads
        self._by_head = g.Concat(shape, [heads, config.head_size], axis=0)
        self._angles = self._look_up_angles(positions, shape)
        x = g.Reshape(x, [-1, config.n_embd])  # (N, C): what Gemm takes
        for i in range(config.n_layer):
            x = g.Add(x, self._attention(i, self._norm(x, f"h.{i}.ln_1"), memory))
            x = g.Add(x, self._mlp(i, self._norm(x, f"h.{i}.ln_2")))
        return g.Reshape(x, g.Concat(shape, [config.n_embd], axis=0))

    def logits(self, features: ir.Value) -> ir.Value:
        """The last norm and the head, (N, C) to float32 (N, vocab_size)."""
        x = self._norm(features, "ln_f")
        logits = self.weights.linear(x, "wte" if self.config.tie_embeddings else "lm_head")
        return logits if self.weights.precision.real == FLOAT else self.g.Cast(logits, to=FLOAT)

    def _embedding(self, ids: ir.Value) -> ir.Value:
        tied = self.config.tie_embeddings
        return self.weights.rows("wte.weight", ids, quantised=tied)  # as the head has it

    def _attention(self, i: int, x: ir.Value, memory: Memory) -> ir.Value:
        """(N, C) to (N, C)."""
        g, config = self.g, self.config
        qkv = g.Reshape(self.weights.linear(x, f"h.{i}.attn.qkv"), self._by_head)
        qkv = g.Transpose(qkv, perm=[0, 2, 1, 3])  # (B, nh + 2 * nkv, T, hs)
        nh, nkv = config.n_head, config.kv_heads
        if config.qk_norm or config.position == "rotary":
            qk, v = g.Split(qkv, [nh + nkv, nkv], axis=1, outputs=2)
            qk = self._plain_rms(qk, config.head_size) if config.qk_norm else qk
            q, k = g.Split(self._rotate(qk), [nh, nkv], axis=1, outputs=2)
        else:
            q, k, v = g.Split(qkv, [nh, nkv, nkv], axis=1, outputs=3)
        y = g.Transpose(memory.attend(i, q, k, v), perm=[0, 2, 1, 3])  # (B, T, nh, hs)
        return self.weights.linear(g.Reshape(y, [-1, config.n_embd]), f"h.{i}.attn.proj")

    def _mlp(self, i: int, x: ir.Value) -> ir.Value:
        """(N, C) to (N, C)."""
        g = self.g
        x = self.weights.linear(x, f"h.{i}.mlp.up")
        match self.config.mlp:
            case "gelu":
                x = g.Gelu(x, approximate="tanh")
            case "relu2":
                x = g.Relu(x)
                x = g.Mul(x, x)
            case "swiglu":
                gate, value = g.Split(x, axis=-1, num_outputs=2, outputs=2)
                x = g.Mul(g.Mul(gate, g.Sigmoid(gate)), value)
        return self.weights.linear(x, f"h.{i}.mlp.proj")

    def _norm(self, x: ir.Value, name: str) -> ir.Value:
        scale = self.weights[f"{name}.weight"]
        if self.config.norm == "rmsnorm":
            return self._rms(x, scale)
        bias = self.weights.get(f"{name}.bias")
        return self.g.LayerNormalization(x, scale, bias, axis=-1, epsilon=NORM_EPS)

    def _plain_rms(self, x: ir.Value, width: int) -> ir.Value:
        """RMS norm over the last dimension, without a learned scale."""
        return self._rms(x, self.weights.constant(f"ones.{width}", np.ones(width)))

    def _rms(self, x: ir.Value, scale: ir.Value) -> ir.Value:
        """RMS norm over the last dimension; onnxruntime fuses the older spelling, too."""
        g = self.g
        if self.opset >= MODERN_OPSET:
            return g.RMSNormalization(x, scale, axis=-1, epsilon=NORM_EPS)
        half = self.weights.precision.real == FLOAT16
        wide = g.Cast(x, to=FLOAT) if half else x  # a square may be too large for float16
        mean = g.ReduceMean(g.Pow(wide, 2.0), [-1], keepdims=1)
        normal = g.Div(wide, g.Sqrt(g.Add(mean, NORM_EPS)))
        return g.Mul(g.Cast(normal, to=FLOAT16) if half else normal, scale)

    def _look_up_angles(self, positions: ir.Value, shape: ir.Value) -> tuple[ir.Value, ...]:
        """What `_rotate` needs, computed once for all layers."""
        if self.config.position != "rotary":
            return ()
        g = self.g
        cos, sin = (self.weights.constant(f"rotary.{n}", t) for n, t in rotary(self.config).items())
        if self.opset >= MODERN_OPSET:
            return cos, sin, g.Expand(positions, shape)
        cos, sin = g.Gather(cos, positions), g.Gather(sin, positions)  # (T, hs/2) or (B, T, hs/2)
        shared = positions.shape is None or len(positions.shape) == 1
        return (cos, sin) if shared else (g.Unsqueeze(cos, [1]), g.Unsqueeze(sin, [1]))

    def _rotate(self, x: ir.Value) -> ir.Value:
        """(B, heads, T, hs) to the same."""
        g = self.g
        if self.config.position != "rotary":
            return x
        if self.opset >= MODERN_OPSET:
            return g.RotaryEmbedding(x, *self._angles)
        cos, sin = self._angles
        a, b = g.Split(x, axis=-1, num_outputs=2, outputs=2)
        turned = (g.Sub(g.Mul(a, cos), g.Mul(b, sin)), g.Add(g.Mul(b, cos), g.Mul(a, sin)))
        return g.Concat(*turned, axis=-1)


def rotary(config: GPTConfig) -> dict[str, NDArray[np.float64]]:
    """The tables of rotary positions, each (block_size, hs / 2)."""
    half = config.head_size // 2
    frequencies = ROPE_THETA ** (-np.arange(half) / half)
    angles = np.outer(np.arange(config.block_size), frequencies)
    return {"cos": np.cos(angles), "sin": np.sin(angles)}


def grouped(g: Scope, q: ir.Value, weights: Weights, config: GPTConfig) -> ir.Value:
    """Scaled queries; those that share keys become rows of one matrix, (B, nkv, rows, hs)."""
    q = g.Mul(q, weights.constant("attention.scale", 1 / math.sqrt(config.head_size)))
    if config.kv_heads == config.n_head:
        return q
    return g.Reshape(q, [0, config.kv_heads, -1, config.head_size])


def ungrouped(g: Scope, y: ir.Value, config: GPTConfig) -> ir.Value:
    """Back to (B, nh, T, hs)."""
    if config.kv_heads == config.n_head:
        return y
    return g.Reshape(y, [0, config.n_head, -1, config.head_size])


def mask(g: Scope, visible: ir.Value, weights: Weights, config: GPTConfig) -> ir.Value:
    """What is added to the scores of grouped queries, from bool (..., T, S)."""
    groups = config.n_head // config.kv_heads
    if groups > 1:
        rank = len(visible.shape) if visible.shape else 2
        visible = g.Tile(visible, [1] * (rank - 2) + [groups, 1])
    seen, hidden = (weights.constant(f"attention.{n}", v) for n, v in MASK.items())
    return g.Where(visible, seen, hidden)


def softmax_attention(
    g: Scope, q: ir.Value, keys: ir.Value, values: ir.Value, added: ir.Value
) -> ir.Value:
    """Grouped queries over keys and values (B, nkv, S, hs), with a mask as `mask` makes it."""
    scores = g.Add(g.MatMul(q, g.Transpose(keys, perm=[0, 1, 3, 2])), added)
    return g.MatMul(g.Softmax(scores, axis=-1), values)
