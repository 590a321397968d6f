"""model.onnx: one step with the names that transformers gives inputs and outputs.

A step feeds tokens that follow a past of any length, none included: prefill and decoding alike,
for batches whose rows may be padded on the left.
"""

import onnx_ir as ir

from gptkit.onnx.graphs.gpt import (
    MODERN_OPSET,
    Decoder,
    grouped,
    mask,
    softmax_attention,
    ungrouped,
)
from gptkit.onnx.graphs.scope import FLOAT, INT64, Scope, declare, typed
from gptkit.onnx.graphs.source import Source

BATCH, SEQUENCE, TOTAL = "batch_size", "sequence_length", "total_sequence_length"


def step_model(source: Source) -> ir.Model:
    """A graph from new tokens and the past to the logits of every new position.

    Inputs: input_ids and position_ids int64 (batch, sequence), attention_mask int64 (batch, total)
    with 0 for padding, past_key_values.N.key and .value (batch, n_kv_head, past, head). Outputs:
    logits float32 (batch, sequence, vocab) and present.N.key and .value, the past of a next step.
    """
    g, config = Scope(), source.config
    ids = declare("input_ids", INT64, [BATCH, SEQUENCE])
    attended = declare("attention_mask", INT64, [BATCH, TOTAL])
    positions = declare("position_ids", INT64, [BATCH, SEQUENCE])
    past = cache_tensors("past_key_values", source, "past_sequence_length")
    decoder = Decoder(source, g)
    memory = ConcatCache(decoder, ids, attended, past)
    x = decoder.features(ids, positions, memory)
    flat = decoder.logits(g.Reshape(x, [-1, config.n_embd]))
    logits = g.Reshape(flat, g.Concat(g.Shape(ids), [config.vocab_size], axis=0))
    outputs = [typed(logits, FLOAT, [BATCH, SEQUENCE, config.vocab_size], name="logits")]
    present = cache_tensors("present", source, TOTAL, values=memory.present)
    return g.model(
        "step",
        [ids, attended, positions, *past],
        [*outputs, *present],
        opset=source.opset,
        metadata=source.metadata,
    )


def cache_tensors(
    prefix: str,
    source: Source,
    length: str | int,
    *,
    batch: str = BATCH,
    values: list[ir.Value] | None = None,
) -> list[ir.Value]:
    """Keys and values of all layers under transformers' names, as a graph's inputs or outputs."""
    config = source.config
    names = [f"{prefix}.{i}.{kind}" for i in range(config.n_layer) for kind in ("key", "value")]
    shape: list[int | str | None] = [batch, config.kv_heads, length, config.head_size]
    found = values or [ir.Value(name=name) for name in names]
    return [
        typed(value, source.precision.real, shape, name=name)
        for name, value in zip(names, found, strict=True)
    ]


class ConcatCache:
    """Attention whose past and present are joined at every step."""

    def __init__(
        self, decoder: Decoder, ids: ir.Value, attended: ir.Value, past: list[ir.Value]
    ) -> None:
        self.decoder, self.past = decoder, past
        self.present: list[ir.Value] = []
        g = decoder.g
        total = g.Gather(g.Shape(attended), 1)
        rows = g.Range(g.Sub(total, g.Gather(g.Shape(ids), 1)), total, 1)
        earlier = g.LessOrEqual(
            g.Unsqueeze(g.Range(0, total, 1), [0]), g.Unsqueeze(rows, [1])
        )  # (T, total)
        real = g.Unsqueeze(g.Greater(attended, 0), [1, 2])  # (B, 1, 1, total)
        visible = typed(g.And(real, earlier), ir.DataType.BOOL, [BATCH, 1, SEQUENCE, TOTAL])
        self.mask = mask(g, visible, decoder.weights, decoder.config) if self.spelled else visible

    @property
    def spelled(self) -> bool:
        """Whether attention has to be spelled out."""
        return self.decoder.opset < MODERN_OPSET

    def attend(self, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """Attention of the new tokens over everything so far."""
        g, config = self.decoder.g, self.decoder.config
        past_keys, past_values = self.past[2 * layer : 2 * layer + 2]
        if not self.spelled:
            y, keys, values = g.Attention(q, k, v, self.mask, past_keys, past_values, outputs=3)
        else:
            keys = g.Concat(past_keys, k, axis=2)
            values = g.Concat(past_values, v, axis=2)
            rows = grouped(g, q, self.decoder.weights, config)
            y = ungrouped(g, softmax_attention(g, rows, keys, values, self.mask), config)
        self.present += [keys, values]
        return y
