"""generate.onnx: the model, its cache and the sampler in one graph; one run draws a whole text.

Two Loops. A turn of the inner one feeds what is new, a prompt or the token just drawn, and draws
the next token. What a Loop carries from turn to turn is copied whenever it grows, so the inner one
carries only a short tail of keys and values. A turn of the outer one, a block of tokens, moves the
tail into the main cache, which the inner Loop reads without copying; there, too, the model starts
anew from half of its context when that is full, as `gptkit.sampling.generate` does.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gptkit.onnx.graphs.gpt import Decoder, grouped, mask, ungrouped
from gptkit.onnx.graphs.sampling import LAST, Rule, SamplingInputs, all_true, uniforms
from gptkit.onnx.graphs.scope import BOOL, INT64, Scope, declare, typed
from gptkit.onnx.graphs.source import Source

BLOCK_TOKENS = 64
"""Tokens between two copies of the main cache."""


@dataclass(frozen=True)
class Cache:
    """Keys and values of one layer; keys transposed, so that no step has to do it."""

    keys: ir.Value  # (B, nkv, hs, S)
    values: ir.Value  # (B, nkv, S, hs)


def generate_model(source: Source) -> ir.Model:
    """A graph from a prompt to the tokens that continue it, of standard operators in float.

    Inputs: prompt_ids int64 (batch, prompt); the scalars max_new_tokens, top_k, seed and
    stop_token (-1: none) int64, temperature and top_p float32. Output: tokens int64 (batch,
    generated). A row that drew the stop token goes on drawing it.
    """
    return _Generate(source).model()


class _Generate:
    def __init__(self, source: Source) -> None:
        self.source, self.config = source, source.config
        self.prompt = declare("prompt_ids", INT64, ["batch", "prompt"])
        self.count = declare("max_new_tokens", INT64)
        self.settings = SamplingInputs.declare()
        self.seed, self.stop = declare("seed", INT64), declare("stop_token", INT64)

    def model(self) -> ir.Model:
        """The outermost graph: what is computed once, and the loop over blocks."""
        g, settings = Scope(), self.settings
        self.batch = g.Slice(g.Shape(self.prompt), [0], [1])
        self.total = g.Max(self.count, 0)
        self.rule = Rule(g, settings, self.config.vocab_size)
        size = g.Concat(g.Reshape(self.total, [1]), self.batch, axis=0)
        self.uniforms = g.Reshape(uniforms(g, self.seed, g.ReduceProd(size, keepdims=0)), size)
        self.empty = self._empty_cache(g)
        window = g.Slice(self.prompt, [-self.config.block_size], [LAST], [1])
        nobody = g.Expand(np.array(False), self.batch)
        caches = [self.empty] * self.config.n_layer
        *_, history, _ = g.Loop(
            None, g.Less(0, self.total), *_flat(caches), window, 0, nobody, window, 0,
            body=self._block(g), outputs=2 * self.config.n_layer + 5,
        )  # fmt: skip
        start = g.Slice(g.Shape(window), [1], [2])
        tokens = typed(
            g.Slice(history, start, [LAST], [1]), INT64, ["batch", "generated"], name="tokens"
        )
        inputs = [self.prompt, self.count, settings.temperature, settings.top_k, settings.top_p]
        return g.model(
            "generate",
            [*inputs, self.seed, self.stop],
            [tokens],
            opset=self.source.opset,
            metadata=self.source.metadata,
        )

    def _block(self, outer: Scope) -> ir.Graph:
        """Draw up to `BLOCK_TOKENS` tokens, then move the cache on."""
        g, block_size = Scope(outer), self.config.block_size
        turn, condition = declare("block", INT64), declare("block_condition", BOOL)
        main = self._new_caches("main")
        fed = declare("fed_ids", INT64, ["batch", None])
        length = declare("cached", INT64)
        finished = declare("block_finished", BOOL, ["batch"])
        history = declare("history", INT64, ["batch", None])
        drawn = declare("drawn", INT64)
        new = g.Gather(g.Shape(fed), 1)
        room = g.Sub(g.Sub(block_size + 1, length), new)
        at_most = g.Where(g.Greater(new, 1), 1, BLOCK_TOKENS)  # a prompt is moved at once
        turns = g.Min(at_most, room, g.Sub(self.total, drawn))
        *tail, after_fed, after_length, after_finished, tokens = g.Loop(
            turns, np.array(True), *_flat([self.empty] * len(main)), fed, length, finished,
            body=self._token(g, main, length, drawn), outputs=2 * len(main) + 4,
        )  # fmt: skip
        after_history = g.Concat(history, g.Transpose(tokens, perm=[1, 0]), axis=1)
        after_drawn = g.Add(drawn, g.Gather(g.Shape(tokens), 0))
        go_on = g.And(g.Not(all_true(g, after_finished)), g.Less(after_drawn, self.total))
        next_state = g.If(
            g.Less(after_length, block_size),
            then_branch=self._grow(g, main, _pairs(tail), after_fed, after_length),
            else_branch=self._start_anew(g, after_history),
            outputs=2 * len(main) + 2,
        )
        *next_main, next_fed, next_length = next_state
        outputs = [
            typed(go_on, BOOL),
            *self._declared(_pairs(next_main)),
            typed(next_fed, INT64, ["batch", None]),
            typed(next_length, INT64),
            typed(g.Identity(after_finished), BOOL, ["batch"]),
            typed(after_history, INT64, ["batch", None]),
            typed(after_drawn, INT64),
        ]
        state = [*_flat(main), fed, length, finished, history, drawn]
        return g.graph("block", [turn, condition, *state], outputs)

    def _token(
        self, outer: Scope, main: list[Cache], main_length: ir.Value, drawn: ir.Value
    ) -> ir.Graph:
        """Feed what is new, draw one token. The weights are here, where they are used."""
        g = Scope(outer)
        turn, condition = declare("token", INT64), declare("token_condition", BOOL)
        tail = self._new_caches("tail")
        fed = declare("new_ids", INT64, ["batch", None])
        length = declare("fed", INT64)
        finished = declare("finished", BOOL, ["batch"])
        decoder = Decoder(self.source, g)
        after_length = g.Add(length, g.Gather(g.Shape(fed), 1))
        positions = typed(g.Range(length, after_length, 1), INT64, [None])
        memory = BlockedCache(decoder, main, tail, main_length=main_length, positions=positions)
        x = g.Gather(decoder.features(fed, positions, memory), -1, axis=1)  # (B, C)
        logits = decoder.logits(x)
        logits.name = "logits"
        u = g.Gather(self.uniforms, g.Add(drawn, turn), axis=0)
        token = g.Where(finished, self.stop, self.rule.choose(g, logits, u))
        after_finished = g.Or(finished, g.Equal(token, self.stop))
        outputs = [
            typed(g.Not(all_true(g, after_finished)), BOOL),
            *self._declared(memory.after),
            typed(g.Unsqueeze(token, [1]), INT64, ["batch", 1]),
            typed(after_length, INT64),
            typed(after_finished, BOOL, ["batch"]),
            typed(token, INT64, ["batch"]),
        ]
        state = [*_flat(tail), fed, length, finished]
        return g.graph("token", [turn, condition, *state], outputs)

    def _grow(
        self, outer: Scope, main: list[Cache], tail: list[Cache], fed: ir.Value, length: ir.Value
    ) -> ir.Graph:
        """The next block goes on from this one: the tail joins the main cache."""
        g = Scope(outer)
        joined = [
            Cache(g.Concat(old.keys, new.keys, axis=3), g.Concat(old.values, new.values, axis=2))
            for old, new in zip(main, tail, strict=True)
        ]
        outputs = [typed(g.Identity(fed), INT64, ["batch", None]), typed(g.Identity(length), INT64)]
        return g.graph("grow", [], [*self._declared(joined), *outputs])

    def _start_anew(self, outer: Scope, history: ir.Value) -> ir.Graph:
        """The context is full: its second half is the next prompt, the cache is empty."""
        g = Scope(outer)
        half = max(1, self.config.block_size // 2)
        fed = g.Slice(history, [-half], [LAST], [1])
        empty = [
            Cache(g.Identity(self.empty.keys), g.Identity(self.empty.values))
            for _ in range(self.config.n_layer)
        ]
        outputs = [typed(fed, INT64, ["batch", None]), typed(g.Identity(0), INT64)]
        return g.graph("start_anew", [], [*self._declared(empty), *outputs])

    def _empty_cache(self, g: Scope) -> Cache:
        zero = ir.tensor(self.source.precision.array(0.0).reshape(1))
        keys = g.Concat(self.batch, [self.config.kv_heads, self.config.head_size, 0], axis=0)
        values = g.Concat(self.batch, [self.config.kv_heads, 0, self.config.head_size], axis=0)
        return Cache(g.ConstantOfShape(keys, value=zero), g.ConstantOfShape(values, value=zero))

    def _new_caches(self, name: str) -> list[Cache]:
        """One per layer, as inputs of a graph."""
        caches = [
            Cache(ir.Value(name=f"{name}.{i}.keys"), ir.Value(name=f"{name}.{i}.values"))
            for i in range(self.config.n_layer)
        ]
        self._declared(caches)
        return caches

    def _declared(self, caches: Iterable[Cache]) -> list[ir.Value]:
        """The tensors in a row, as inputs or outputs of a graph."""
        real, nkv, hs = self.source.precision.real, self.config.kv_heads, self.config.head_size
        tensors = []
        for cache in caches:
            tensors.append(typed(cache.keys, real, ["batch", nkv, hs, None]))
            tensors.append(typed(cache.values, real, ["batch", nkv, None, hs]))
        return tensors


class BlockedCache:
    """Attention over the main cache, which stays, and the tail, which grows.

    Args:
        decoder: that asks.
        main, tail: keys and values of every layer.
        main_length: tokens in the main cache.
        positions: int64 (T,) of the new tokens.
    """

    def __init__(
        self,
        decoder: Decoder,
        main: list[Cache],
        tail: list[Cache],
        *,
        main_length: ir.Value,
        positions: ir.Value,
    ) -> None:
        self.decoder, self.main, self.tail = decoder, main, tail
        self.after: list[Cache] = []
        g, config = decoder.g, decoder.config
        end = g.Add(g.Gather(positions, -1), 1)
        visible = g.LessOrEqual(
            g.Unsqueeze(g.Range(main_length, end, 1), [0]), g.Unsqueeze(positions, [1])
        )
        self.mask = mask(g, visible, decoder.weights, config)
        tail_length = g.Sub(end, main_length)
        self.lengths = g.Concat(*(g.Reshape(n, [1]) for n in (main_length, tail_length)), axis=0)

    def attend(self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """Softmax over both parts at once."""
        g, main, tail = self.decoder.g, self.main[layer], self.tail[layer]
        keys = g.Concat(tail.keys, g.Transpose(k, perm=[0, 1, 3, 2]), axis=3)
        values = g.Concat(tail.values, v, axis=2)
        self.after.append(Cache(keys, values))
        q = grouped(g, q, self.decoder.weights, self.decoder.config)
        near = g.Add(g.MatMul(q, keys), self.mask)
        p = g.Softmax(g.Concat(g.MatMul(q, main.keys), near, axis=-1), axis=-1)
        far_p, near_p = g.Split(p, self.lengths, axis=-1, outputs=2)
        y = g.Add(g.MatMul(far_p, main.values), g.MatMul(near_p, values))
        return ungrouped(g, y, self.decoder.config)


def _flat(caches: Iterable[Cache]) -> list[ir.Value]:
    return [tensor for cache in caches for tensor in (cache.keys, cache.values)]


def _pairs(tensors: list[ir.Value]) -> list[Cache]:
    return [Cache(*pair) for pair in zip(tensors[::2], tensors[1::2], strict=True)]
