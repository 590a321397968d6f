"""The caches of keys and values as ONNX nodes: attention over cached and new tokens.

Every graph has the cache that fits it: `generate` a `BlockedCache`, `step` a `ConcatCache`,
`decode` a `GroupQueryCache` or, without that operator, a `StaticCache`. Shapes as in
`gptkit.onnx.graphs.gpt`; S tokens are cached, the new ones included.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gptkit.onnx.graphs.gpt import GPTGraph
from gptkit.onnx.graphs.scope import BOOL, MICROSOFT, Operand, Scope, typed
from gptkit.onnx.graphs.source import ExportSource

SCORES = {"visible": 0.0, "hidden": -3e4}
"""Added to attention scores; float16 can hold -3e4, and its exponential is 0."""


def visible(g: Scope, queries: ir.Value, keys: Operand, window: Operand = None) -> ir.Value:
    """Which tokens a token may see: itself and those before it, or its window of them.

    Args:
        g: the scope.
        queries: positions of the queries (..., T, 1).
        keys: positions of the keys (S,) or (1, S), of the same type.
        window: how many tokens it sees at most, itself included, of that type, too; None: all.

    Returns:
        bool (..., T, S).
    """
    seen = g.LessOrEqual(keys, queries)
    if window is None:
        return seen
    return g.And(seen, g.Greater(keys, g.Sub(queries, window)))


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, each (B, nkv, S, hs)."""

    keys: ir.Value
    values: ir.Value


class BlockedCache:
    """The cache of `generate`: a main part that stays, and a tail that grows by every token.

    Args:
        gpt: the model.
        main: keys and values of every layer; all positions before the tail's.
        tail: the same, for the positions after them.
        lengths: tokens in the main part and in the tail, the new ones included, int64 (2,).
        added: to the scores of the tail, by `mask`. One token sees all of it: (1, 1) will do.
        positions: of the new tokens, int64 (T,).
    """

    def __init__(
        self,
        gpt: GPTGraph,
        main: list[LayerCache],
        tail: list[LayerCache],
        *,
        lengths: ir.Value,
        added: ir.Value,
        positions: ir.Value,
    ) -> None:
        self.gpt, self.main, self.tail = gpt, main, tail
        self.lengths, self.added = lengths, added
        self.grown: list[LayerCache] = []
        """The tail with the new tokens, layer by layer."""
        self.windowed: dict[int, ir.Value] = {}
        """What is added to the scores of both parts, by window."""
        g = gpt.g
        for window in filter(None, gpt.config.windows):
            with g.named("cache.window"):
                keys = g.Unsqueeze(g.Range(0, g.ReduceSum(lengths, [0], keepdims=0), 1), [0])
                seen = visible(g, g.Unsqueeze(positions, [1]), keys, window)
                self.windowed[window] = mask(g, gpt.source, seen)

    def attend(self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """One softmax over the scores of both parts; without a window a query sees all of main."""
        g, main, tail = self.gpt.g, self.main[layer], self.tail[layer]
        with g.named(f"h.{layer}.attn.cache"):
            keys = g.Concat(tail.keys, k, axis=2)
            values = g.Concat(tail.values, v, axis=2)
        self.grown.append(LayerCache(keys, values))
        q = group(self.gpt, q)
        main_scores, tail_scores = scores_of(g, q, main.keys), scores_of(g, q, keys)
        if (window := self.gpt.config.window_of(layer)) is None:
            scores = g.Concat(main_scores, g.Add(tail_scores, self.added), axis=-1)
        else:
            scores = g.Add(g.Concat(main_scores, tail_scores, axis=-1), self.windowed[window])
        p = g.Softmax(scores, axis=-1)
        main_p, tail_p = g.Split(p, self.lengths, axis=-1, outputs=2)
        y = g.Add(g.MatMul(main_p, main.values), g.MatMul(tail_p, values))
        return ungroup(self.gpt, y)


class ConcatCache:
    """The cache of `step`: the past comes in, past and present go out.

    Args:
        gpt: the model.
        ids: of the new tokens, int64 (B, T).
        attention_mask: int64 (B, S), 0 for padding.
        past: keys and values of every layer, in turn.
    """

    def __init__(
        self, gpt: GPTGraph, ids: ir.Value, attention_mask: ir.Value, past: list[ir.Value]
    ) -> None:
        self.gpt, self.past = gpt, past
        self.present: list[ir.Value] = []
        g = gpt.g
        with g.named("cache"):
            total = g.Gather(g.Shape(attention_mask), 1)
            queries = g.Range(g.Sub(total, g.Gather(g.Shape(ids), 1)), total, 1)
            keys = g.Unsqueeze(g.Range(0, total, 1), [0])
            queries = g.Unsqueeze(queries, [1])
            real = g.Unsqueeze(g.Greater(attention_mask, 0), [1, 2])  # (B, 1, 1, S)
            self.added: dict[int | None, ir.Value] = {}
            """To the scores, by window."""
            for window in gpt.config.windows:
                causal = visible(g, queries, keys, window)  # (T, S)
                seen = typed(g.And(real, causal), BOOL, [None, 1, None, None])
                self.added[window] = mask(g, gpt.source, seen)

    def attend(self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """Attention over the past and the new tokens."""
        g = self.gpt.g
        past_keys, past_values = self.past[2 * layer : 2 * layer + 2]
        with g.named(f"h.{layer}.attn.cache"):
            keys = g.Concat(past_keys, k, axis=2)
            values = g.Concat(past_values, v, axis=2)
        self.present += [keys, values]
        added = self.added[self.gpt.config.window_of(layer)]
        return attention(self.gpt, q, keys, values, added)


class GroupQueryCache:
    """The cache of `decode` in onnxruntime's own operator, which writes into it in place.

    The operator masks by itself: a row sees the tokens up to its length and the new one.

    Args:
        gpt: the model.
        length: tokens in the cache before this one, int32 (B,).
        past: buffers of block_size tokens: keys and values of every layer, in turn.
    """

    def __init__(self, gpt: GPTGraph, length: ir.Value, past: list[ir.Value]) -> None:
        self.gpt, self.length, self.past = gpt, length, past
        self.present: list[ir.Value] = []

    def attend(self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """Attention of one token; with T = 1 heads can be joined without transposing."""
        g, config = self.gpt.g, self.gpt.config
        rows = [g.Reshape(part, [0, 1, -1]) for part in (q, k, v)]
        y, keys, values = g.GroupQueryAttention(
            *rows,
            *self.past[2 * layer : 2 * layer + 2],
            self.length,
            np.array(config.block_size, np.int32),  # size of the buffer
            domain=MICROSOFT,
            num_heads=config.n_head,
            kv_num_heads=config.kv_heads,
            outputs=3,
        )
        self.present += [keys, values]
        return g.Reshape(y, [0, config.n_head, 1, config.head_size])


class StaticCache:
    """The cache of `decode` in standard operators, over the whole buffer; arguments as above."""

    def __init__(self, gpt: GPTGraph, length: ir.Value, past: list[ir.Value]) -> None:
        self.gpt, self.past = gpt, past
        self.present: list[ir.Value] = []
        g, size = gpt.g, gpt.config.block_size
        with g.named("cache"):
            positions = np.arange(size, dtype=np.int32)
            position = g.Reshape(length, [-1, 1, 1, 1])
            self.added: dict[int | None, ir.Value] = {}
            """To the scores, by window."""
            for window in gpt.config.windows:
                width = None if window is None else np.array(window, np.int32)
                seen = typed(visible(g, position, positions, width), BOOL, [None, 1, 1, size])
                self.added[window] = mask(g, gpt.source, seen)
            self.written = g.Equal(positions[:, None], position)  # (B, 1, block_size, 1)

    def attend(self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """Attention of one token over the buffer, in which it takes its place."""
        g = self.gpt.g
        past_keys, past_values = self.past[2 * layer : 2 * layer + 2]
        with g.named(f"h.{layer}.attn.cache"):
            keys = g.Where(self.written, k, past_keys)
            values = g.Where(self.written, v, past_values)
        self.present += [keys, values]
        added = self.added[self.gpt.config.window_of(layer)]
        return attention(self.gpt, q, keys, values, added)


def group(gpt: GPTGraph, q: ir.Value) -> ir.Value:
    """Scale queries; those that share keys become rows of one matrix, (B, nkv, rows, hs).

    The scale is a vector: onnxruntime would fold a single number into the products with the keys,
    and those of one token are then 1.7 times slower.
    """
    g, config = gpt.g, gpt.config
    scale = np.full(config.head_size, 1 / math.sqrt(config.head_size))
    q = g.Mul(q, gpt.weights.constant("attention.scale", scale))
    if config.kv_heads == config.n_head:
        return q
    return g.Reshape(q, [0, config.kv_heads, -1, config.head_size])


def ungroup(gpt: GPTGraph, y: ir.Value) -> ir.Value:
    """The inverse of `group`'s reshape, to (B, nh, T, hs)."""
    if gpt.config.kv_heads == gpt.config.n_head:
        return y
    return gpt.g.Reshape(y, [0, gpt.config.n_head, -1, gpt.config.head_size])


def mask(g: Scope, source: ExportSource, seen: ir.Value) -> ir.Value:
    """What is added to the scores of grouped queries, from what is visible, bool (..., T, S)."""
    groups = source.config.n_head // source.config.kv_heads
    if groups > 1:
        rank = len(seen.shape) if seen.shape else 2
        seen = g.Tile(seen, [1] * (rank - 2) + [groups, 1])
    return g.Where(seen, *(source.precision.array(SCORES[name]) for name in SCORES))


def scores_of(g: Scope, q: ir.Value, keys: ir.Value) -> ir.Value:
    """Products of q and keys; onnxruntime transposes while it multiplies."""
    return g.MatMul(q, g.Transpose(keys, perm=[0, 1, 3, 2]))


def attention(
    gpt: GPTGraph, q: ir.Value, keys: ir.Value, values: ir.Value, added: ir.Value
) -> ir.Value:
    """Attention of q (B, nh, T, hs) over keys and values (B, nkv, S, hs), masked by `mask`."""
    g = gpt.g
    scores = g.Add(scores_of(g, group(gpt, q), keys), added)
    return ungroup(gpt, g.MatMul(g.Softmax(scores, axis=-1), values))


def cache_tensors(
    prefix: str,
    source: ExportSource,
    length: str | int,
    *,
    batch: str,
    values: Iterable[ir.Value] | None = None,
) -> list[ir.Value]:
    """Keys and values of all layers as inputs or outputs of a graph, with transformers' names.

    Args:
        prefix: `past_key_values` or `present`.
        source: the model.
        length: tokens in the cache, a number or a dimension's name.
        batch: the name of the first dimension.
        values: the outputs; None declares inputs.
    """
    config = source.config
    names = [f"{prefix}.{i}.{kind}" for i in range(config.n_layer) for kind in ("key", "value")]
    shape: list[int | str | None] = [batch, config.kv_heads, length, config.head_size]
    values = values or [ir.Value(name=name) for name in names]
    return [
        typed(value, source.precision.real, shape, name=name)
        for name, value in zip(names, values, strict=True)
    ]
