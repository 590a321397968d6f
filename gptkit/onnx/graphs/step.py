"""model.onnx: one step, whose inputs and outputs have transformers' names.

A step feeds tokens after a past of any length, none included: for prefill and for decoding, and for
batches whose rows are padded on the left.
"""

import onnx_ir as ir

from gptkit.onnx.graphs.cache import ConcatCache, cache_tensors
from gptkit.onnx.graphs.gpt import GPTGraph, Shapes, checked_ids
from gptkit.onnx.graphs.scope import FLOAT, INT64, Scope, declare, typed
from gptkit.onnx.graphs.source import ExportSource

BATCH, SEQUENCE, TOTAL = "batch_size", "sequence_length", "total_sequence_length"
PAST = "past_sequence_length"


def step_model(source: ExportSource) -> ir.Model:
    """The graph `step`: from new tokens and the past to logits at every new position.

    Inputs: input_ids and position_ids int64 (batch, sequence), attention_mask int64 (batch, total)
    with 0 for padding, past_key_values.N.key and .value (batch, n_kv_head, past, head). Outputs:
    logits float32 (batch, sequence, vocab) and present.N.key and .value, the past of the next step.
    """
    g, config = Scope(), source.config
    ids = declare("input_ids", INT64, [BATCH, SEQUENCE])
    attention_mask = declare("attention_mask", INT64, [BATCH, TOTAL])
    positions = declare("position_ids", INT64, [BATCH, SEQUENCE])
    past = cache_tensors("past_key_values", source, PAST, batch=BATCH)
    gpt = GPTGraph(source, g)
    cache = ConcatCache(gpt, ids, attention_mask, past)
    known = checked_ids(g, ids, config.vocab_size)
    x = gpt.features(known, positions, cache, Shapes.of(g, ids, config))
    with g.named("shape"):
        x = g.Reshape(x, [-1, config.n_embd])
    flat = gpt.logits(x)
    with g.named("shape"):
        logits = g.Reshape(flat, g.Concat(g.Shape(ids), [config.vocab_size], axis=0))
    typed(logits, FLOAT, [BATCH, SEQUENCE, config.vocab_size], name="logits")
    present = cache_tensors("present", source, TOTAL, batch=BATCH, values=cache.present)
    return g.model(
        "step",
        [ids, attention_mask, positions, *past],
        [logits, *present],
        doc="One step of a GPT: new tokens and the cached keys and values to the logits at every "
        "new position and the grown cache. Inputs and outputs have transformers' names.",
        metadata=source.metadata,
    )
