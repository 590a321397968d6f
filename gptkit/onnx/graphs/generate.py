"""generate.onnx: the model, its cache and the sampling rule in one graph; one run draws a text.

Two Loops. One turn of the inner Loop feeds the new tokens, a prompt or the token just drawn, and
draws the next one. A Loop copies what it carries from turn to turn whenever that grows, so the
inner Loop carries only a short tail of the cache. One turn of the outer Loop draws a block of
tokens and then appends the tail to the main part of the cache, which the inner Loop reads without
copying it. When the context is full, the outer Loop restarts with an empty cache, by the rule of
`gptkit.sampling.generate`.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from gptkit.onnx.graphs.cache import BlockedCache, LayerCache, mask, visible
from gptkit.onnx.graphs.gpt import GPTGraph, Shapes, checked_ids
from gptkit.onnx.graphs.sampling import LAST, SamplingInputs, SamplingRule, all_true, uniforms
from gptkit.onnx.graphs.scope import BOOL, INT64, Scope, declare, typed
from gptkit.onnx.graphs.source import ExportSource
from gptkit.onnx.graphs.text import LOGITS, PROMPT
from gptkit.sampling.generate import restart_length

BLOCK_TOKENS = 32
"""Tokens between two copies of the main part of the cache."""


def generate_model(source: ExportSource) -> ir.Model:
    """The graph `generate`: from a prompt to the tokens that continue it, in standard operators.

    Inputs: prompt_ids int64 (batch, prompt); the scalars max_new_tokens, top_k and seed int64,
    temperature and top_p float32; stop_tokens int64 (stops,), which may be empty. Output: tokens
    int64 (batch, generated). A row that drew a stop token repeats it until all rows have drawn one.
    """
    return _GenerateGraph(source).model()


class _GenerateGraph:
    def __init__(self, source: ExportSource) -> None:
        self.source, self.config = source, source.config
        self.prompt = declare(PROMPT, INT64, ["batch", "prompt"])
        self.count = declare("max_new_tokens", INT64)
        self.options = SamplingInputs.declare()
        self.seed = declare("seed", INT64)
        self.stops = declare("stop_tokens", INT64, ["stops"])

    def model(self) -> ir.Model:
        """The outermost graph: what is computed once, and the Loop over blocks."""
        g = Scope()
        with g.named("stops"):
            ids = g.Unsqueeze(g.Range(0, self.config.vocab_size, 1), [1])
            stops = g.Concat(self.stops, [-1], axis=0)  # never empty, for ReduceSum
            is_stop = g.Cast(g.Equal(ids, stops), to=INT64)
            self.is_stop = g.ReduceSum(is_stop, [1], keepdims=0)  # (V,), 0 for all others
        with g.named("prompt"):
            self.batch = g.Slice(g.Shape(self.prompt), [0], [1])
            self.total = g.Max(self.count, 0)
            context = g.Slice(self.prompt, [-self.config.block_size], [LAST], [1])
        context = checked_ids(g, context, self.config.vocab_size)
        with g.named("sampling"):
            self.rule = SamplingRule(g, self.options, self.config.vocab_size)
        with g.named("sampling.uniforms"):
            shape = g.Concat(g.Reshape(self.total, [1]), self.batch, axis=0)
            numbers = uniforms(g, self.seed, g.ReduceProd(shape, keepdims=0))
            shape = g.Concat(shape, [1], axis=0)
            self.uniforms = g.Reshape(numbers, shape)  # (total, B, 1)
        self.empty = self._empty_cache(g)
        with g.named("blocks"):
            history = self._loop_over_blocks(g, context)
            start = g.Slice(g.Shape(context), [1], [2])
            tokens = g.Slice(history, start, [LAST], [1])
        return g.model(
            "generate",
            [self.prompt, self.count, *self.options.values, self.seed, self.stops],
            [typed(tokens, INT64, ["batch", "generated"], name="tokens")],
            doc="A GPT with its cache and the sampling rule: a prompt to the tokens that continue "
            "it. A Loop over blocks of tokens holds a Loop over tokens.",
            metadata=self.source.metadata,
        )

    def _loop_over_blocks(self, g: Scope, context: ir.Value) -> ir.Value:
        """The context and the tokens that were drawn after it, int64 (B, context + generated)."""
        nothing_finished = g.Expand(np.array(False), g.Concat(self.batch, [1], axis=0))
        caches = _flat([self.empty] * self.config.n_layer)
        state = [*caches, context, 0, nothing_finished, context, 0]
        more = g.Less(0, self.total)
        body = self._block(g)
        *_, history, _ = g.Loop(None, more, *state, body=body, outputs=len(state))
        return history

    def _block(self, outer: Scope) -> ir.Graph:
        """Draw up to `BLOCK_TOKENS` tokens, then append the tail to the main part of the cache."""
        g = Scope(outer)
        turn, condition = declare("block", INT64), declare("block_condition", BOOL)
        main = self._declare_caches("main")
        fed = declare("fed_ids", INT64, ["batch", None])
        length = declare("cached", INT64)
        finished = declare("block_finished", BOOL, ["batch", 1])
        history = declare("history", INT64, ["batch", None])
        drawn = declare("drawn", INT64)
        turns = self._turns(g, fed, length, drawn)
        tail, (fed_next, positions, _, finished_next, tokens) = self._loop_over_tokens(
            g, main, turns, fed=fed, length=length, finished=finished, drawn=drawn
        )
        with g.named("next"):
            history_next = g.Concat(history, g.Transpose(tokens, perm=[1, 0]), axis=1)
            drawn_next = g.Add(drawn, g.Gather(g.Shape(tokens), 0))
            length_next = g.Gather(positions, 0)
        go_on = g.And(g.Not(all_true(g, finished_next)), g.Less(drawn_next, self.total))
        with g.named("cache"):
            append = self._append(g, main, tail, fed_next, length_next)
            restart = self._restart(g, history_next)
            fits = g.Less(length_next, self.config.block_size)
            *main_next, fed_next, length_next = g.If(
                fits, then_branch=append, else_branch=restart, outputs=2 * len(main) + 2
            )
        outputs = [
            typed(go_on, BOOL),
            *self._typed(_pairs(main_next)),
            typed(fed_next, INT64, ["batch", None]),
            typed(length_next, INT64),
            typed(g.Identity(finished_next), BOOL, ["batch", 1]),
            typed(history_next, INT64, ["batch", None]),
            typed(drawn_next, INT64),
        ]
        inputs = [turn, condition, *_flat(main), fed, length, finished, history, drawn]
        return g.graph(
            "block",
            inputs,
            outputs,
            doc="Draws a block of tokens, then appends their keys and values to the cache, or "
            "restarts with an empty cache if the context is full.",
        )

    def _turns(self, g: Scope, fed: ir.Value, length: ir.Value, drawn: ir.Value) -> ir.Value:
        """How many tokens a block draws, int64 ()."""
        new = g.Gather(g.Shape(fed), 1)
        room = g.Sub(g.Sub(self.config.block_size + 1, length), new)
        most = g.Where(g.Greater(new, 1), 1, BLOCK_TOKENS)  # a prompt is a block of its own
        return g.Min(most, room, g.Sub(self.total, drawn))

    def _loop_over_tokens(
        self,
        g: Scope,
        main: list[LayerCache],
        turns: ir.Value,
        *,
        fed: ir.Value,
        length: ir.Value,
        finished: ir.Value,
        drawn: ir.Value,
    ) -> tuple[list[LayerCache], Sequence[ir.Value]]:
        """The tail after a block's turns, and what else the Loop gives.

        A prompt has a single turn, so shapes and mask are those of all turns of a block.
        """
        with g.named("position"):
            new = g.Gather(g.Shape(fed), 1)
            positions = g.Range(length, g.Add(length, new), 1)
            lengths = g.Concat(g.Reshape(length, [1]), g.Reshape(new, [1]), axis=0)
        with g.named("cache"):
            own = g.Range(0, new, 1)
            seen = visible(g, g.Unsqueeze(own, [1]), g.Unsqueeze(own, [0]))
            added = mask(g, self.source, seen)
        shapes = Shapes.of(g, fed, self.config)
        state = [*_flat([self.empty] * len(main)), fed, positions, lengths, finished]
        with g.named("tokens"):
            body = self._token(g, main, added, shapes, drawn)
            outputs = g.Loop(turns, np.array(True), *state, body=body, outputs=len(state) + 1)
        return _pairs(outputs[: 2 * len(main)]), outputs[2 * len(main) :]

    def _token(
        self, outer: Scope, main: list[LayerCache], added: ir.Value, shapes: Shapes, drawn: ir.Value
    ) -> ir.Graph:
        """Feed the new tokens, draw one. The weights are in this graph, which uses them."""
        g = Scope(outer)
        turn, condition = declare("token", INT64), declare("token_condition", BOOL)
        tail = self._declare_caches("tail")
        fed = declare("new_ids", INT64, ["batch", None])
        positions = declare("positions", INT64, [None])
        lengths = declare("lengths", INT64, [2])
        finished = declare("finished", BOOL, ["batch", 1])
        gpt = GPTGraph(self.source, g)
        with g.named("position"):
            positions_next = g.ReduceSum(lengths, [0], keepdims=1)
            lengths_next = g.Add(lengths, [0, 1])
        cache = BlockedCache(gpt, main, tail, lengths=lengths, added=added, positions=positions)
        x = g.Gather(gpt.features(fed, positions, cache, shapes), -1, axis=1)  # (B, C)
        logits = gpt.logits(x)
        logits.name = LOGITS
        with g.named("sampling"):
            u = g.Gather(self.uniforms, g.Add(drawn, turn), axis=0)
            token = self.rule.choose(g, logits, u)
        with g.named("stops"):
            token = g.Where(finished, g.Gather(fed, [-1], axis=1), token)  # (B, 1)
            stops = g.Gather(self.is_stop, token)  # repeated, so it stays above 0
            go_on = g.Equal(g.ReduceMin(stops, keepdims=0), 0)
        outputs = [
            typed(go_on, BOOL),
            *self._typed(cache.grown),
            typed(token, INT64, ["batch", 1]),
            typed(positions_next, INT64, [None]),
            typed(lengths_next, INT64, [2]),
            typed(g.Cast(stops, to=BOOL), BOOL, ["batch", 1]),
            typed(g.Squeeze(token, [1]), INT64, ["batch"]),
        ]
        inputs = [turn, condition, *_flat(tail), fed, positions, lengths, finished]
        doc = "Feeds the new tokens to the model and draws the next one."
        return g.graph("token", inputs, outputs, doc=doc)

    def _append(
        self,
        outer: Scope,
        main: list[LayerCache],
        tail: list[LayerCache],
        fed: ir.Value,
        length: ir.Value,
    ) -> ir.Graph:
        """The next block continues: the tail becomes part of the main cache."""
        g, joined = Scope(outer), []
        with g.named("cache.append"):
            for old, new in zip(main, tail, strict=True):
                keys = g.Concat(old.keys, new.keys, axis=2)
                joined.append(LayerCache(keys, g.Concat(old.values, new.values, axis=2)))
            fed, length = g.Identity(fed), g.Identity(length)
        outputs = [*self._typed(joined), typed(fed, INT64, ["batch", None]), typed(length, INT64)]
        doc = "Appends the keys and values of a block to the main part of the cache."
        return g.graph("append", [], outputs, doc=doc)

    def _restart(self, outer: Scope, history: ir.Value) -> ir.Graph:
        """The context is full: its last part is the new prompt, the cache is empty."""
        g = Scope(outer)
        with g.named("cache.restart"):
            fed = g.Slice(history, [-restart_length(self.config.block_size)], [LAST], [1])
            empty = [
                LayerCache(g.Identity(self.empty.keys), g.Identity(self.empty.values))
                for _ in range(self.config.n_layer)
            ]
            length = g.Identity(0)
        outputs = [*self._typed(empty), typed(fed, INT64, ["batch", None]), typed(length, INT64)]
        doc = "Empties the cache and makes the last part of the context the new prompt."
        return g.graph("restart", [], outputs, doc=doc)

    def _empty_cache(self, g: Scope) -> LayerCache:
        nkv, hs = self.config.kv_heads, self.config.head_size
        zero = ir.tensor(self.source.precision.array(0.0).reshape(1))
        with g.named("cache"):
            keys = g.Concat(self.batch, [nkv, 0, hs], axis=0)
            values = g.Concat(self.batch, [nkv, 0, hs], axis=0)
            return LayerCache(
                g.ConstantOfShape(keys, value=zero), g.ConstantOfShape(values, value=zero)
            )

    def _declare_caches(self, name: str) -> list[LayerCache]:
        """Keys and values of every layer as inputs of a graph."""
        caches = [
            LayerCache(ir.Value(name=f"{name}.{i}.keys"), ir.Value(name=f"{name}.{i}.values"))
            for i in range(self.config.n_layer)
        ]
        self._typed(caches)
        return caches

    def _typed(self, caches: Iterable[LayerCache]) -> list[ir.Value]:
        """Keys and values in turn, with type and shape, as inputs or outputs of a graph."""
        real, nkv, hs = self.source.precision.real, self.config.kv_heads, self.config.head_size
        tensors = []
        for cache in caches:
            tensors.append(typed(cache.keys, real, ["batch", nkv, None, hs]))
            tensors.append(typed(cache.values, real, ["batch", nkv, None, hs]))
        return tensors


def _flat(caches: Iterable[LayerCache]) -> list[ir.Value]:
    return [tensor for cache in caches for tensor in (cache.keys, cache.values)]


def _pairs(tensors: list[ir.Value]) -> list[LayerCache]:
    return [LayerCache(*pair) for pair in zip(tensors[::2], tensors[1::2], strict=True)]
