"""decode.onnx: one token, sampler included, with static shapes and nothing for the host to do.

Made for IO binding and CUDA graphs: every output that the next step needs is bound to that step's
input, so a host only launches. `DecodeSession` in `gptkit.onnx.runtime.decode_session` shows how.
"""

import numpy as np
import onnx_ir as ir

from gptkit.onnx.graphs.gpt import Decoder, grouped, mask, softmax_attention, ungrouped
from gptkit.onnx.graphs.sampling import Rule, SamplingInputs, invert, nucleus
from gptkit.onnx.graphs.scope import BOOL, FLOAT, INT32, INT64, MICROSOFT, Scope, declare, typed
from gptkit.onnx.graphs.source import Source
from gptkit.onnx.graphs.step import cache_tensors

BATCH, DRAWS = "batch", "draws"


def decode_model(source: Source, *, fused: bool = True) -> ir.Model:
    """A graph from a token to the next.

    Inputs: input_ids int64 (batch, 1); length int32 (batch,), tokens in the cache; draw int64 (1,),
    the number of the draw; uniforms float32 (draws, batch) and tokens_in int64 (draws, batch), what
    was drawn so far; temperature, top_k, top_p (1,); past_key_values.N.key and .value (batch,
    n_kv_head, block_size, head). Outputs: next_ids, next_length, next_draw, tokens and present.N.*,
    each of its input's shape; present may be the very buffer of past.

    Args:
        source: the model.
        fused: attend with onnxruntime's GroupQueryAttention, which writes into the cache in place;
            otherwise with standard operators over the whole buffer.
    """
    g, config = Scope(), source.config
    ids = declare("input_ids", INT64, [BATCH, 1])
    length = declare("length", INT32, [BATCH])
    draw = declare("draw", INT64, [1])
    table = declare("uniforms", FLOAT, [DRAWS, BATCH])
    drawn = declare("tokens_in", INT64, [DRAWS, BATCH])
    settings = SamplingInputs(
        declare("temperature", FLOAT, [1]), declare("top_k", INT64, [1]),
        declare("top_p", FLOAT, [1]),
    )  # fmt: skip
    past = cache_tensors("past_key_values", source, config.block_size, batch=BATCH)
    decoder = Decoder(source, g)
    memory = (GroupQueryCache if fused else StaticCache)(decoder, length, past)
    positions = typed(g.Unsqueeze(g.Cast(length, to=INT64), [1]), INT64, [BATCH, 1])
    x = decoder.features(ids, positions, memory)
    logits = decoder.logits(g.Reshape(x, [-1, config.n_embd]))
    u = g.Transpose(g.Gather(table, draw, axis=0), perm=[1, 0])  # (B, 1)
    token = _choose(g, logits, u, settings, config.vocab_size)  # (B, 1)
    tokens = g.ScatterND(drawn, g.Unsqueeze(draw, [1]), g.Transpose(token, perm=[1, 0]))
    outputs = [
        typed(token, INT64, [BATCH, 1], name="next_ids"),
        typed(g.Add(length, np.array(1, np.int32)), INT32, [BATCH], name="next_length"),
        typed(g.Add(draw, 1), INT64, [1], name="next_draw"),
        typed(tokens, INT64, [DRAWS, BATCH], name="tokens"),
    ]
    present = cache_tensors(
        "present", source, config.block_size, batch=BATCH, values=memory.present
    )
    inputs = [ids, length, draw, table, drawn, settings.temperature, settings.top_k, settings.top_p]
    return g.model(
        "decode",
        [*inputs, *past],
        [*outputs, *present],
        opset=source.opset,
        metadata=source.metadata,
    )


def _choose(
    g: Scope, logits: ir.Value, u: ir.Value, settings: SamplingInputs, vocab_size: int
) -> ir.Value:
    """The sampling rule without branches: both orders are computed, one is taken."""
    rule = Rule(g, settings, vocab_size)
    x = g.Div(logits, rule.temperature)
    plain = g.Min(invert(g, g.Softmax(x, axis=-1), u), rule.last)
    values, ids = g.TopK(x, [vocab_size], axis=-1, outputs=2)
    among = g.Less(np.arange(vocab_size), rule.k)  # (V,)
    kept = g.Where(among, values, float(np.finfo(np.float32).min))
    place = nucleus(g, g.Softmax(kept, axis=-1), u, rule.top_p)
    top = g.GatherElements(ids, g.Min(place, g.Sub(rule.k, 1)), axis=1)
    return g.Where(rule.sorts, top, plain)


class GroupQueryCache:
    """Attention by onnxruntime's own operator; the cache is a buffer of block_size tokens."""

    def __init__(self, decoder: Decoder, length: ir.Value, past: list[ir.Value]) -> None:
        self.decoder, self.length, self.past = decoder, length, past
        self.present: list[ir.Value] = []

    def attend(self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """The new token over everything so far; T is 1, so heads need no transposing."""
        g, config = self.decoder.g, self.decoder.config
        rows = [g.Reshape(part, [0, 1, -1]) for part in (q, k, v)]
        y, keys, values = g.GroupQueryAttention(
            *rows, *self.past[2 * layer : 2 * layer + 2], self.length,
            np.array(config.block_size, np.int32),  # the buffer; each row's length is `length`
            domain=MICROSOFT, num_heads=config.n_head, kv_num_heads=config.kv_heads, outputs=3,
        )  # fmt: skip
        self.present += [keys, values]
        return g.Reshape(y, [0, config.n_head, 1, config.head_size])


class StaticCache:
    """The same with standard operators: what lies behind the new token is masked."""

    def __init__(self, decoder: Decoder, length: ir.Value, past: list[ir.Value]) -> None:
        self.decoder, self.past = decoder, past
        self.present: list[ir.Value] = []
        g, config = decoder.g, decoder.config
        places = np.arange(config.block_size, dtype=np.int32)
        here = g.Reshape(length, [-1, 1, 1, 1])
        visible = typed(g.LessOrEqual(places, here), BOOL, [BATCH, 1, 1, config.block_size])
        self.mask = mask(g, visible, decoder.weights, config)
        self.written = g.Equal(places[:, None], here)  # (B, 1, block_size, 1)

    def attend(self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """The new token over the whole buffer."""
        g, config = self.decoder.g, self.decoder.config
        past_keys, past_values = self.past[2 * layer : 2 * layer + 2]
        keys = g.Where(self.written, k, past_keys)
        values = g.Where(self.written, v, past_values)
        self.present += [keys, values]
        rows = grouped(g, q, self.decoder.weights, config)
        return ungrouped(g, softmax_attention(g, rows, keys, values, self.mask), config)
