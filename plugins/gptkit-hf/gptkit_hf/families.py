"""Architectures of transformers: config.json to the options of [model], and back.

Sources: transformers' own configuration and modelling files. Defaults are those of its classes,
since a config.json may leave them out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gptkit.plugin import UsageError
from gptkit_hf.fields import Fields, refuse_all, told
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
IMPORT_HINT = "gptkit imports GPT-2, Llama, Mistral, Qwen2, Qwen3, Arcee and NanoChat"
EXPORT_HINT = "train a model with other options; gptkit check RECIPE says what opens it"


@dataclass(frozen=True)
class Family:
    """An architecture of transformers."""

    model_type: str
    architecture: str
    gated: bool
    """Whether the MLP has a gate."""
    prefix: str
    """Of the names of all tensors but the head's."""
    read: Callable[[Fields], dict[str, Any]]
    """The options of [model] that a config.json has; faults are noted in the fields."""
    write: Callable[[Shape], dict[str, Any]]
    """The contents of a config.json, without what all have."""
    faults: Callable[[Shape], set[str]]
    """The options that it cannot express."""


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json.

    Raises:
        UsageError: it is of another one.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        fault = told("model_type", kind) if "model_type" in config else "it has no model_type"
        raise UsageError(f"config.json: cannot be imported: {fault}", hint=IMPORT_HINT)
    return FAMILIES[kind]


def to_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of [model], with vocab_size and block_size, of a config.json.

    What has gptkit's default is left out, except sizes.

    Raises:
        UsageError: names all that gptkit does not have, or that is wrong.
    """
    family, fields = family_of(config), Fields(config)
    fields.expect("architectures", [family.architecture])
    fields.expect("quantization_config")
    fields.expect("is_encoder_decoder", False)
    fields.expect("add_cross_attention", False)
    options = family.read(fields)
    if options["n_layer"] > MOST_LAYERS:
        fields.refuse(f"{options['n_layer']:,} layers should be at most {MOST_LAYERS:,}")
    _check_heads(fields, options)
    refuse_all(f"config.json ({family.model_type})", fields.faults, hint=IMPORT_HINT)
    return {name: value for name, value in options.items() if value is not None}


def to_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of the config.json of a model with these options.

    Args:
        options: of [model], with vocab_size and block_size.

    Raises:
        UsageError: no family has all of them; it names those that the nearest one lacks.
    """
    shape = Shape.of(options)
    family = choose(shape)
    return {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": is_tied(shape),
        **family.write(shape),
        "dtype": "float32",
        "use_cache": True,
    }


def choose(shape: Shape) -> Family:
    """The first family that can express a model.

    Raises:
        UsageError: none can.
    """
    found = {family: family.faults(shape) for family in FAMILIES.values()}
    fewest = min(map(len, found.values()))
    nearest = {family: faults for family, faults in found.items() if len(faults) == fewest}
    if fewest:
        near = "; ".join(
            f"{family.architecture}, but for {' and '.join(f'model.{n}' for n in sorted(faults))}"
            for family, faults in nearest.items()
        )
        raise UsageError(
            f"no model of transformers has all these options; the nearest: {near}", hint=EXPORT_HINT
        )
    return next(iter(nearest))


def is_tied(shape: Shape) -> bool:
    """Whether the head has the weights of the embedding in transformers, too.

    With a norm behind the embedding it has not: scales of norms, or the norm itself, are part of
    the weights there.
    """
    return shape.tie_embeddings and not shape.embed_norm


def _check_heads(fields: Fields, options: Mapping[str, Any]) -> None:
    heads, kv_heads = options["n_head"], options["n_kv_head"] or options["n_head"]
    if options["head_dim"] is None and options["n_embd"] % heads:
        fields.refuse(f"width {options['n_embd']} should be divisible by {heads} heads")
    if heads % kv_heads:
        fields.refuse(f"{heads} heads should be divisible by {kv_heads} key and value heads")
    if options["position"] == "rotary" and (options["head_dim"] or options["n_embd"] // heads) % 2:
        fields.refuse("heads should have an even width")


def _read_gpt2(fields: Fields) -> dict[str, Any]:
    fields.expect("scale_attn_weights", True)
    fields.expect("scale_attn_by_inverse_layer_idx", False)
    return {
        "n_layer": fields.size("n_layer"),
        "n_head": fields.size("n_head"),
        "n_kv_head": None,
        "head_dim": None,
        "n_embd": fields.size("n_embd"),
        "n_inner": fields.size("n_inner", 4 * fields.size("n_embd")),
        "norm": "layernorm",
        "position": "learned",
        "mlp": fields.choice("activation_function", UNGATED, "gelu_new"),
        "bias": True,
        "norm_eps": fields.number("layer_norm_epsilon", 1e-5),
        "tie_embeddings": fields.flag("tie_word_embeddings", default=True),
        "vocab_size": fields.size("vocab_size"),
        "block_size": fields.size("n_positions", 1024),
    }


def _write_gpt2(shape: Shape) -> dict[str, Any]:
    return {
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "n_embd": shape.n_embd,
        "n_inner": shape.inner_size,
        "n_positions": shape.block_size,
        "n_ctx": shape.block_size,
        "activation_function": UNGATED_NAMES[shape.mlp],
        "layer_norm_epsilon": shape.norm_eps,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"), 0.0),
    }


def _gpt2_faults(shape: Shape) -> set[str]:
    return _set(
        position=shape.position != "learned",
        norm=shape.norm != "layernorm",
        mlp=shape.mlp not in UNGATED_NAMES,
        n_kv_head=shape.kv_heads != shape.n_head,
        head_dim=shape.query_size != shape.n_embd,
        embed_norm=shape.embed_norm,
        qk_norm=shape.qk_norm,
        window=any(shape.windows),
        logit_softcap=shape.logit_softcap is not None,
    )


def _read_rotary(
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


def _write_rotary(shape: Shape, *, gated: bool) -> dict[str, Any]:
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


def _rotary_faults(shape: Shape, *, gated: bool, **lacks: bool) -> set[str]:
    known = GATED_NAMES if gated else UNGATED_NAMES
    return _set(
        position=shape.position != "rotary",
        norm=shape.norm != "rmsnorm",
        mlp=shape.mlp not in known,
        **{"logit_softcap": shape.logit_softcap is not None, **lacks},
    )


def _read_biases(fields: Fields) -> dict[str, Any]:
    """Biases of all linear layers, or of none."""
    attention, mlp = (fields.flag(f"{n}_bias", default=False) for n in ("attention", "mlp"))
    if attention != mlp:
        fields.refuse(f"attention_bias = {attention} beside mlp_bias = {mlp}".lower())
    return {"bias": attention}


def _write_biases(shape: Shape) -> dict[str, Any]:
    return {"attention_bias": shape.bias, "mlp_bias": shape.bias}


def _read_llama(fields: Fields) -> dict[str, Any]:
    options = _read_rotary(fields, gated=True, act="silu", eps=1e-6)
    return options | _read_biases(fields)


def _write_llama(shape: Shape) -> dict[str, Any]:
    return _write_rotary(shape, gated=True) | _write_biases(shape)


def _llama_faults(shape: Shape) -> set[str]:
    return _rotary_faults(
        shape,
        gated=True,
        qk_norm=shape.qk_norm,
        window=any(shape.windows),
        qkv_bias=shape.has_qkv_bias and not shape.bias,
        head_dim=shape.n_embd % shape.n_head > 0,
    )


def _read_arcee(fields: Fields) -> dict[str, Any]:
    options = _read_rotary(fields, gated=False, act="relu2", eps=1e-5)
    return options | _read_biases(fields)


def _write_arcee(shape: Shape) -> dict[str, Any]:
    return _write_rotary(shape, gated=False) | _write_biases(shape)


def _arcee_faults(shape: Shape) -> set[str]:
    return _rotary_faults(
        shape,
        gated=False,
        qk_norm=shape.qk_norm,
        window=any(shape.windows),
        qkv_bias=shape.has_qkv_bias and not shape.bias,
        head_dim=shape.n_embd % shape.n_head > 0,
    )


def _read_mistral(fields: Fields) -> dict[str, Any]:
    options = _read_rotary(fields, gated=True, act="silu", eps=1e-6)
    fields.expect("layer_types", ["sliding_attention"] * options["n_layer"])
    # A config.json without the key has the default of transformers; null is no window.
    window = None if "sliding_window" in fields and fields.get("sliding_window") is None else 4096
    return options | {"window": fields.size("sliding_window", window) if window else None}


def _write_mistral(shape: Shape) -> dict[str, Any]:
    return _write_rotary(shape, gated=True) | {"sliding_window": shape.windows[0]}


def _mistral_faults(shape: Shape) -> set[str]:
    return _rotary_faults(
        shape,
        gated=True,
        qk_norm=shape.qk_norm,
        window_pattern=len(set(shape.windows)) > 1,
        bias=shape.bias,
        qkv_bias=shape.has_qkv_bias and not shape.bias,
    )


def _read_windows(fields: Fields, n_layer: int) -> dict[str, Any]:
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


def _write_windows(shape: Shape) -> dict[str, Any]:
    names = ["full_attention" if each is None else "sliding_attention" for each in shape.windows]
    used = any(shape.windows)
    return {
        "use_sliding_window": used,
        "sliding_window": shape.window if used else None,
        "max_window_layers": 0 if used else shape.n_layer,
        "layer_types": names,
    }


def _read_qwen2(fields: Fields) -> dict[str, Any]:
    options = _read_rotary(fields, gated=True, act="silu", eps=1e-6)
    return options | {"qkv_bias": True} | _read_windows(fields, options["n_layer"])


def _write_qwen2(shape: Shape) -> dict[str, Any]:
    return _write_rotary(shape, gated=True) | _write_windows(shape)


def _qwen2_faults(shape: Shape) -> set[str]:
    return _rotary_faults(shape, gated=True, qk_norm=shape.qk_norm, bias=shape.bias)


def _read_qwen3(fields: Fields) -> dict[str, Any]:
    options = _read_rotary(fields, gated=True, act="silu", eps=1e-6, head_dim=128)
    fields.expect("attention_bias", False)
    options |= {"qk_norm": True, "qk_norm_scale": True}
    return options | _read_windows(fields, options["n_layer"])


def _write_qwen3(shape: Shape) -> dict[str, Any]:
    written = _write_rotary(shape, gated=True) | _write_windows(shape)
    return written | {"attention_bias": False}


def _qwen3_faults(shape: Shape) -> set[str]:
    return _rotary_faults(
        shape,
        gated=True,
        qk_norm=not shape.qk_norm,
        bias=shape.bias,
        qkv_bias=shape.has_qkv_bias and not shape.bias,
    )


def _read_nanochat(fields: Fields) -> dict[str, Any]:
    options = _read_rotary(fields, gated=False, act="relu2", eps=1e-6)
    fields.expect("attention_bias", False)
    capped = "final_logit_softcapping" not in fields or fields.get("final_logit_softcapping")
    cap = fields.number("final_logit_softcapping", 15.0) if capped else None
    return options | {"embed_norm": True, "qk_norm": True, "logit_softcap": cap}


def _write_nanochat(shape: Shape) -> dict[str, Any]:
    written = _write_rotary(shape, gated=False) | {"attention_bias": False}
    return written | {"final_logit_softcapping": shape.logit_softcap}


def _nanochat_faults(shape: Shape) -> set[str]:
    return _rotary_faults(
        shape,
        gated=False,
        logit_softcap=False,
        embed_norm=not shape.embed_norm,
        qk_norm=not shape.qk_norm,
        qk_norm_scale=shape.qk_norm_scale,
        window=any(shape.windows),
        bias=shape.bias,
        qkv_bias=shape.has_qkv_bias and not shape.bias,
    )


def _set(**found: bool) -> set[str]:
    return {name for name, wrong in found.items() if wrong}


# The order in which they are tried for an export. Those with a gate need each matrix of a squared
# ReLU twice, so they come later; Llama comes before those that have windows or zero biases besides.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("nanochat", "NanoChatForCausalLM", False, "model.",
               _read_nanochat, _write_nanochat, _nanochat_faults),
        Family("gpt2", "GPT2LMHeadModel", False, "transformer.",
               _read_gpt2, _write_gpt2, _gpt2_faults),
        Family("arcee", "ArceeForCausalLM", False, "model.",
               _read_arcee, _write_arcee, _arcee_faults),
        Family("llama", "LlamaForCausalLM", True, "model.",
               _read_llama, _write_llama, _llama_faults),
        Family("mistral", "MistralForCausalLM", True, "model.",
               _read_mistral, _write_mistral, _mistral_faults),
        Family("qwen2", "Qwen2ForCausalLM", True, "model.",
               _read_qwen2, _write_qwen2, _qwen2_faults),
        Family("qwen3", "Qwen3ForCausalLM", True, "model.",
               _read_qwen3, _write_qwen3, _qwen3_faults),
    )
}  # fmt: skip
