"""following: tokens to the logits of the token that follows them, with a cache in place.

Not a file of an export: gptkit runs it on the weights of a checkpoint, and draws the token itself.
"""

import onnx_ir as ir

from gptkit.onnx.graphs.cache import cache_tensors
from gptkit.onnx.graphs.gpt import GPTGraph, Shapes, checked_ids
from gptkit.onnx.graphs.scope import FLOAT, INT32, INT64, MICROSOFT, Scope, declare, typed
from gptkit.onnx.graphs.source import ExportSource

BATCH, NEW = "batch", "new"


def following_model(source: ExportSource) -> ir.Model:
    """The graph `following`: from new tokens to the logits of the next.

    Inputs: input_ids int64 (batch, new), either a prompt or one token; last int32 (batch,), the
    position of the last of them; total int32 (), the tokens of a prompt, for one token block_size;
    past_key_values.N.key and .value (batch, n_kv_head, block_size, head). Outputs: logits float32
    (batch, vocab_size) and present.N.*, which may be the buffers of past.
    """
    g, config = Scope(), source.config
    ids = declare("input_ids", INT64, [BATCH, NEW])
    last, total = declare("last", INT32, [BATCH]), declare("total", INT32)
    past = cache_tensors("past_key_values", source, config.block_size, batch=BATCH)
    gpt = GPTGraph(source, g)
    cache = PromptCache(gpt, last, total, past)
    with g.named("position"):
        count = g.Gather(g.Shape(ids), 1)
        ends = g.Unsqueeze(g.Cast(last, to=INT64), [1])
        positions = typed(g.Add(ends, g.Range(g.Sub(1, count), 1, 1)), INT64, [BATCH, NEW])
    known = checked_ids(g, ids, config.vocab_size)
    x = gpt.features(known, positions, cache, Shapes.of(g, ids, config))
    logits = gpt.logits(g.Gather(x, -1, axis=1))
    return g.model(
        "following",
        [ids, last, total, *past],
        [
            typed(logits, FLOAT, [BATCH, config.vocab_size], name="logits"),
            *cache_tensors("present", source, config.block_size, batch=BATCH, values=cache.present),
        ],
        doc="A prompt or a token of a GPT to the logits of the next one; the cache stays in place.",
        metadata=source.metadata,
    )


class PromptCache:
    """Like `GroupQueryCache`, also for a prompt that fills an empty cache.

    Args:
        gpt: the model.
        last: position of the last new token, int32 (B,).
        total: tokens of a prompt; block_size for one token. int32 ().
        past: buffers of block_size tokens: keys and values of every layer, in turn.
    """

    def __init__(
        self, gpt: GPTGraph, last: ir.Value, total: ir.Value, past: list[ir.Value]
    ) -> None:
        self.gpt, self.last, self.total, self.past = gpt, last, total, past
        self.present: list[ir.Value] = []

    def attend(self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """Attention over the cache and the new tokens, which are written into it."""
        g, config = self.gpt.g, self.gpt.config
        rows = [
            g.Reshape(g.Transpose(part, perm=[0, 2, 1, 3]), [0, 0, -1]) for part in (q, k, v)
        ]  # (B, T, heads * hs)
        y, keys, values = g.GroupQueryAttention(
            *rows,
            *self.past[2 * layer : 2 * layer + 2],
            self.last,
            self.total,
            domain=MICROSOFT,
            num_heads=config.n_head,
            kv_num_heads=config.kv_heads,
            outputs=3,
        )
        self.present += [keys, values]
        y = g.Reshape(y, [0, 0, config.n_head, config.head_size])
        return g.Transpose(y, perm=[0, 2, 1, 3])
