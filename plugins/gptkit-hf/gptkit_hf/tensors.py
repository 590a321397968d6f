"""The tensors that a model of transformers has: their names and shapes."""

from gptkit_hf.families import Family, is_tied
from gptkit_hf.shape import Shape

Shapes = dict[str, tuple[int, ...]]
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Ends of names of what older files have beside the weights, and models compute themselves."""


def tensor_shapes(family: Family, shape: Shape, *, tied: bool | None = None) -> Shapes:
    """Names and shapes of all weights; a tied head is not among them.

    Args:
        family: of the model.
        shape: of the model.
        tied: whether the head is the embedding; if None as an export of gptkit has it.
    """
    tied = is_tied(shape) if tied is None else tied
    found = _gpt2(shape) if family.model_type == "gpt2" else _rotary(family, shape)
    return found if tied else found | {"lm_head.weight": (shape.vocab_size, shape.n_embd)}


def layer_prefix(family: Family, layer: int) -> str:
    """Of the names of a layer's tensors."""
    return f"transformer.h.{layer}." if family.model_type == "gpt2" else f"model.layers.{layer}."


def _gpt2(shape: Shape) -> Shapes:
    width, inner = shape.n_embd, shape.inner_size
    found: Shapes = {
        "transformer.wte.weight": (shape.vocab_size, width),
        "transformer.wpe.weight": (shape.block_size, width),
    }
    for layer in range(shape.n_layer):
        name = f"transformer.h.{layer}."
        for norm in ("ln_1", "ln_2"):
            found |= {f"{name}{norm}.weight": (width,), f"{name}{norm}.bias": (width,)}
        for part, (rows, columns) in {
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, inner),
            "mlp.c_proj": (inner, width),
        }.items():  # stored as (inputs, outputs)
            found |= {f"{name}{part}.weight": (rows, columns), f"{name}{part}.bias": (columns,)}
    return found | {"transformer.ln_f.weight": (width,), "transformer.ln_f.bias": (width,)}


def _rotary(family: Family, shape: Shape) -> Shapes:
    width, kind = shape.n_embd, family.model_type
    found: Shapes = {"model.embed_tokens.weight": (shape.vocab_size, width)}
    for layer in range(shape.n_layer):
        name = f"model.layers.{layer}."
        for part, size in _linear(family, shape).items():
            found[f"{name}{part}.weight"] = size
            if _has_bias(kind, part, shape):
                found[f"{name}{part}.bias"] = size[:1]
        if kind == "qwen3":
            norms = ("self_attn.q_norm", "self_attn.k_norm")
            found |= dict.fromkeys((f"{name}{n}.weight" for n in norms), (shape.head_size,))
        if kind != "nanochat":
            norms = ("input_layernorm", "post_attention_layernorm")
            found |= dict.fromkeys((f"{name}{n}.weight" for n in norms), (width,))
    return found if kind == "nanochat" else found | {"model.norm.weight": (width,)}


def _linear(family: Family, shape: Shape) -> Shapes:
    """The matrices of a layer, (outputs, inputs)."""
    width, inner = shape.n_embd, shape.inner_size
    found: Shapes = {
        "self_attn.q_proj": (shape.query_size, width),
        "self_attn.k_proj": (shape.kv_size, width),
        "self_attn.v_proj": (shape.kv_size, width),
        "self_attn.o_proj": (width, shape.query_size),
    }
    if family.model_type == "nanochat":
        return found | {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    gate: Shapes = {"mlp.gate_proj": (inner, width)} if family.gated else {}
    return found | gate | {"mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}


def _has_bias(kind: str, part: str, shape: Shape) -> bool:
    if kind == "qwen2":
        return part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return kind in ("llama", "arcee") and shape.bias
