"""What the families with rotary positions have in common: sizes, MLPs, biases, windows."""

from typing import Any

from gptkit_hf.fields import Fields, told
from gptkit_hf.rope import read_rope, write_rope
from gptkit_hf.shape import Shape

MOST_LAYERS = 10_000
GATED = {"silu": "swiglu", "swish": "swiglu", "relu": "relu2"}
"""MLPs with a gate. Where gate and value are the same, ReLU(x) * x is the squared ReLU."""
UNGATED = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu2",
}
GATED_NAMES = {"swiglu": "silu", "relu2": "relu"}
UNGATED_NAMES = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu2": "relu2"}


def read_rotary(
    fields: Fields, *, gated: bool, act: str, eps: float, head_dim: int | None = None
) -> dict[str, Any]:
    """What the families with rotary positions have in common."""
    heads, width, block_size = _heads(fields)
    size = fields.size("head_dim", head_dim) if head_dim or fields.get("head_dim") else None
    kv_heads = fields.size("num_key_value_heads", heads)
    if "num_key_value_heads" not in fields:  # the defaults of transformers differ
        fields.refuse("num_key_value_heads is missing")
    return {
        "n_layer": fields.size("num_hidden_layers"),
        "n_head": heads,
        "n_kv_head": kv_heads if kv_heads != heads else None,
        "head_dim": size if size and size * heads != width else None,
        "n_embd": width,
        "n_inner": fields.size("intermediate_size"),
        "norm": "rmsnorm",
        "position": "rotary",
        "mlp": fields.choice("hidden_act", GATED if gated else UNGATED, act),
        "bias": False,
        "norm_eps": fields.number("rms_norm_eps", eps),
        "tie_embeddings": fields.flag("tie_word_embeddings", default=False),
        "vocab_size": fields.size("vocab_size"),
        "block_size": block_size,
        **read_rope(fields, block_size),
    }


def _heads(fields: Fields) -> tuple[int, int, int]:
    return (
        fields.size("num_attention_heads"),
        fields.size("hidden_size"),
        fields.size("max_position_embeddings"),
    )


def write_rotary(shape: Shape, *, gated: bool) -> dict[str, Any]:
    """What the contents of their config.json have in common."""
    return {
        "hidden_size": shape.n_embd,
        "intermediate_size": shape.inner_size,
        "num_hidden_layers": shape.n_layer,
        "num_attention_heads": shape.n_head,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "hidden_act": (GATED_NAMES if gated else UNGATED_NAMES)[shape.mlp],
        "max_position_embeddings": shape.block_size,
        "rms_norm_eps": shape.norm_eps,
        "attention_dropout": 0.0,
        **write_rope(shape),
    }


def rotary_faults(shape: Shape, *, gated: bool, **lacks: bool) -> set[str]:
    """The options that they cannot express; `lacks` names further ones of a family."""
    known = GATED_NAMES if gated else UNGATED_NAMES
    return named(
        position=shape.position != "rotary",
        norm=shape.norm != "rmsnorm",
        mlp=shape.mlp not in known,
        **{"logit_softcap": shape.logit_softcap is not None, **lacks},
    )


def read_biases(fields: Fields) -> dict[str, Any]:
    """Biases of all linear layers, or of none."""
    attention, mlp = (fields.flag(f"{n}_bias", default=False) for n in ("attention", "mlp"))
    if attention != mlp:
        fields.refuse(f"attention_bias = {attention} beside mlp_bias = {mlp}".lower())
    return {"bias": attention}


def write_biases(shape: Shape) -> dict[str, Any]:
    """The keys of biases, of all linear layers or of none."""
    return {"attention_bias": shape.bias, "mlp_bias": shape.bias}


def read_windows(fields: Fields, n_layer: int) -> dict[str, Any]:
    """Windows by layer, as Qwen has them."""
    if n_layer > MOST_LAYERS or not fields.flag("use_sliding_window", default=False):
        fields.expect("layer_types", ["full_attention"] * min(n_layer, MOST_LAYERS))
        return {}
    window = fields.size("sliding_window", 4096)
    letters = {"sliding_attention": "S", "full_attention": "L"}
    types = fields.get("layer_types")
    if types is None:
        first = fields.get("max_window_layers")
        first = 28 if first is None else first
        if type(first) is not int or first < 0:
            fields.refuse(told("max_window_layers", first))
            return {}
        types = ["full_attention" if i < first else "sliding_attention" for i in range(n_layer)]
    if (
        not isinstance(types, list)
        or len(types) != n_layer
        or any(type(each) is not str or each not in letters for each in types)
    ):
        fields.refuse(told("layer_types", types))
        return {}
    if "sliding_attention" not in types:
        return {}
    pattern = "".join(letters[each] for each in types)
    return {"window": window, "window_pattern": _period(pattern)}


def _period(pattern: str) -> str:
    """The shortest pattern that repeats over the layers."""
    count = len(pattern)
    return next(
        pattern[:size]
        for size in range(1, count + 1)
        if (pattern[:size] * -(-count // size))[:count] == pattern
    )


def write_windows(shape: Shape) -> dict[str, Any]:
    """The keys of windows by layer, as Qwen has them."""
    names = ["full_attention" if each is None else "sliding_attention" for each in shape.windows]
    used = any(shape.windows)
    return {
        "use_sliding_window": used,
        "sliding_window": shape.window if used else None,
        "max_window_layers": 0 if used else shape.n_layer,
        "layer_types": names,
    }


def named(**found: bool) -> set[str]:
    """The names of what is true."""
    return {name for name, wrong in found.items() if wrong}
