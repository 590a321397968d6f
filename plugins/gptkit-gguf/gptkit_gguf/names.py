"""The tensors that a model has: their names in GGUF and in transformers, shapes and changes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Place:
    """Where one of transformers' tensors is in a GGUF file.

    Attributes:
        name: In GGUF.
        shape: In GGUF, in torch's order.
        change: "pairs": the rows of each of `heads` heads are in pairs, as llama.cpp rotates them,
            and not in halves; "turned": transposed.
    """

    name: str
    shape: tuple[int, ...]
    change: Literal["", "pairs", "turned"] = ""
    heads: int = 1

    def to_gguf(self, tensor: Array) -> Array:
        """The tensor as GGUF has it."""
        if self.change == "turned":
            tensor = tensor.T
        elif self.change == "pairs":
            tensor = _split(tensor, self.heads, 2).swapaxes(1, 2).reshape(tensor.shape)
        return np.ascontiguousarray(tensor)

    def to_hf(self, tensor: Array, *, pairs: bool = False) -> Array:
        """The tensor as transformers has it; with `pairs`, rows in pairs stay so."""
        if self.change == "turned":
            tensor = tensor.T
        elif self.change == "pairs" and not pairs:
            half = len(tensor) // self.heads // 2
            tensor = _split(tensor, self.heads, half).swapaxes(1, 2).reshape(tensor.shape)
        return np.ascontiguousarray(tensor)


def layout(config: Mapping[str, Any]) -> dict[str, Place]:
    """The places of all tensors of a model, by their names in transformers.

    Args:
        config: contents of a config.json, of a family that llama.cpp has.
    """
    tensors = _gpt2(config) if config["model_type"] == "gpt2" else _llama(config)
    return dict(tensors)


def _gpt2(config: Mapping[str, Any]) -> Iterator[tuple[str, Place]]:
    width, vocab = config["n_embd"], config["vocab_size"]
    inner = config.get("n_inner") or 4 * width
    yield "transformer.wte.weight", Place("token_embd.weight", (vocab, width))
    yield "transformer.wpe.weight", Place("position_embd.weight", (config["n_positions"], width))
    for i in range(config["n_layer"]):
        block, own = f"transformer.h.{i}", f"blk.{i}"
        for name, norm in (("ln_1", "attn_norm"), ("ln_2", "ffn_norm")):
            for part in ("weight", "bias"):
                yield f"{block}.{name}.{part}", Place(f"{own}.{norm}.{part}", (width,))
        for name, matrix, rows, columns in (
            ("attn.c_attn", "attn_qkv", 3 * width, width),
            ("attn.c_proj", "attn_output", width, width),
            ("mlp.c_fc", "ffn_up", inner, width),
            ("mlp.c_proj", "ffn_down", width, inner),
        ):
            place = Place(f"{own}.{matrix}.weight", (rows, columns), "turned")
            yield f"{block}.{name}.weight", place
            yield f"{block}.{name}.bias", Place(f"{own}.{matrix}.bias", (rows,))
    for part in ("weight", "bias"):
        yield f"transformer.ln_f.{part}", Place(f"output_norm.{part}", (width,))
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", Place("output.weight", (vocab, width))


def _llama(config: Mapping[str, Any]) -> Iterator[tuple[str, Place]]:
    """Llama and its relatives."""
    width, vocab, inner = (
        config["hidden_size"],
        config["vocab_size"],
        config["intermediate_size"],
    )
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or width // heads
    family = config["model_type"]
    yield "model.embed_tokens.weight", Place("token_embd.weight", (vocab, width))
    yield "model.norm.weight", Place("output_norm.weight", (width,))
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", Place("output.weight", (vocab, width))
    qkv_bias = family == "qwen2" or bool(config.get("attention_bias"))
    out_bias = family != "qwen2" and bool(config.get("attention_bias"))
    change: Literal["", "pairs"] = "" if family.startswith("qwen") else "pairs"
    matrices = [
        ("self_attn.q_proj", "attn_q", heads * size, width, qkv_bias, change, heads),
        ("self_attn.k_proj", "attn_k", kv_heads * size, width, qkv_bias, change, kv_heads),
        ("self_attn.v_proj", "attn_v", kv_heads * size, width, qkv_bias, "", 1),
        ("self_attn.o_proj", "attn_output", width, heads * size, out_bias, "", 1),
        ("mlp.up_proj", "ffn_up", inner, width, bool(config.get("mlp_bias")), "", 1),
        ("mlp.down_proj", "ffn_down", width, inner, bool(config.get("mlp_bias")), "", 1),
    ]
    if family != "arcee":
        matrices.append(
            ("mlp.gate_proj", "ffn_gate", inner, width, bool(config.get("mlp_bias")), "", 1)
        )
    norms = [
        ("input_layernorm", "attn_norm", width),
        ("post_attention_layernorm", "ffn_norm", width),
    ]
    if family == "qwen3":
        norms += [
            ("self_attn.q_norm", "attn_q_norm", size),
            ("self_attn.k_norm", "attn_k_norm", size),
        ]
    for i in range(config["num_hidden_layers"]):
        block, own = f"model.layers.{i}", f"blk.{i}"
        for name, norm, length in norms:
            yield f"{block}.{name}.weight", Place(f"{own}.{norm}.weight", (length,))
        for name, matrix, rows, columns, bias, order, groups in matrices:
            place = Place(f"{own}.{matrix}.weight", (rows, columns), order, groups)
            yield f"{block}.{name}.weight", place
            if bias:
                yield f"{block}.{name}.bias", Place(f"{own}.{matrix}.bias", (rows,), order, groups)


def _split(tensor: Array, heads: int, parts: int) -> Array:
    """The rows by head, part and place within the part: (heads, parts, rows of a part, ...)."""
    return tensor.reshape(heads, parts, len(tensor) // heads // parts, *tensor.shape[1:])
