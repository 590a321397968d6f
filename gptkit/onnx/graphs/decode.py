"""decode.onnx: one token per run, sampling included, with static shapes.

Made for IO binding and CUDA graphs: every output that the next run needs is bound to that run's
input, so the host only launches. `gptkit.onnx.runtime.decode_session` does it.
"""

import numpy as np
import onnx_ir as ir

from gptkit.onnx.graphs.cache import GroupQueryCache, StaticCache, cache_tensors
from gptkit.onnx.graphs.gpt import GPTGraph, Shapes, checked_ids
from gptkit.onnx.graphs.sampling import SamplingInputs, SamplingRule, invert, nucleus
from gptkit.onnx.graphs.scope import FLOAT, INT32, INT64, Scope, declare, typed
from gptkit.onnx.graphs.source import ExportSource

BATCH, DRAWS = "batch", "draws"
"""Names of the dimensions that vary between sessions, but not between runs."""


def decode_model(source: ExportSource) -> ir.Model:
    """The graph `decode`: from a token to the next.

    Inputs: input_ids int64 (batch, 1); length int32 (batch,), tokens in the cache; draw int64 (1,),
    the number of the draw; uniforms float32 (draws, batch) and tokens_in int64 (draws, batch), the
    tokens drawn so far; temperature, top_k, top_p (1,); past_key_values.N.key and .value (batch,
    n_kv_head, block_size, head). Outputs: next_ids, next_length, next_draw, tokens and present.N.*,
    each in the shape of its input; present may be the buffer of past.
    """
    g, config = Scope(), source.config
    ids = declare("input_ids", INT64, [BATCH, 1])
    length = declare("length", INT32, [BATCH])
    draw = declare("draw", INT64, [1])
    table = declare("uniforms", FLOAT, [DRAWS, BATCH])
    drawn = declare("tokens_in", INT64, [DRAWS, BATCH])
    options = SamplingInputs.declare([1])
    past = cache_tensors("past_key_values", source, config.block_size, batch=BATCH)
    gpt = GPTGraph(source, g)
    cache = (GroupQueryCache if source.fused else StaticCache)(gpt, length, past)
    with g.named("position"):
        positions = typed(g.Unsqueeze(g.Cast(length, to=INT64), [1]), INT64, [BATCH, 1])
    known = checked_ids(g, ids, config.vocab_size)
    x = gpt.features(known, positions, cache, Shapes.of(g, ids, config))
    with g.named("shape"):
        x = g.Reshape(x, [-1, config.n_embd])
    logits = gpt.logits(x)
    with g.named("sampling"):
        u = g.Transpose(g.Gather(table, draw, axis=0), perm=[1, 0])  # (B, 1)
        token = _choose(g, logits, u, options, config.vocab_size)  # (B, 1)
    with g.named("next"):
        tokens = g.ScatterND(drawn, g.Unsqueeze(draw, [1]), g.Transpose(token, perm=[1, 0]))
        next_length, next_draw = g.Add(length, np.array(1, np.int32)), g.Add(draw, 1)
    outputs = [
        typed(token, INT64, [BATCH, 1], name="next_ids"),
        typed(next_length, INT32, [BATCH], name="next_length"),
        typed(next_draw, INT64, [1], name="next_draw"),
        typed(tokens, INT64, [DRAWS, BATCH], name="tokens"),
        *cache_tensors("present", source, config.block_size, batch=BATCH, values=cache.present),
    ]
    return g.model(
        "decode",
        [ids, length, draw, table, drawn, *options.values, *past],
        outputs,
        doc="One token of a GPT, drawn and ready for the next run. All shapes are static: bind "
        "next_ids to input_ids and so on, and present to the buffers of past_key_values.",
        metadata=source.metadata,
    )


def _choose(
    g: Scope, logits: ir.Value, u: ir.Value, options: SamplingInputs, vocab_size: int
) -> ir.Value:
    """The sampling rule without branches: both results are computed, one is taken."""
    rule = SamplingRule(g, options, vocab_size)
    x = g.Div(logits, rule.temperature)
    unsorted = g.Min(invert(g, g.Softmax(x, axis=-1), u), rule.last)
    values, ids = g.TopK(x, [vocab_size], axis=-1, outputs=2)
    in_top_k = g.Less(np.arange(vocab_size), rule.k)  # (V,)
    values = g.Where(in_top_k, values, float(np.finfo(np.float32).min))
    rank = nucleus(g, g.Softmax(values, axis=-1), u, rule.top_p)
    top = g.GatherElements(ids, g.Min(rank, g.Sub(rule.k, 1)), axis=1)
    return g.Where(rule.sorts, top, unsorted)
