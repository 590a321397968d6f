"""The families one by one: how each reads and writes its config.json, and what it lacks.

`read_NAME` gives the options of [model] that a config.json has, and notes faults in the fields;
`write_NAME` gives the contents of a config.json, without what all have; `NAME_faults` gives the
options that it cannot express.
"""

from typing import Any

from gptkit_hf.fields import Fields
from gptkit_hf.rotary import (
    MOST_LAYERS,
    UNGATED,
    UNGATED_NAMES,
    named,
    read_biases,
    read_rotary,
    read_windows,
    rotary_faults,
    write_biases,
    write_rotary,
    write_windows,
)
from gptkit_hf.shape import Shape


def read_gpt2(fields: Fields) -> dict[str, Any]:
    """The options that a config.json of GPT-2 has."""
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


def write_gpt2(shape: Shape) -> dict[str, Any]:
    """The contents of a config.json of GPT-2."""
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


def gpt2_faults(shape: Shape) -> set[str]:
    """The options that GPT-2 cannot express."""
    return named(
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


def read_llama(fields: Fields) -> dict[str, Any]:
    """The options that a config.json of Llama has."""
    options = read_rotary(fields, gated=True, act="silu", eps=1e-6)
    return options | read_biases(fields)


def write_llama(shape: Shape) -> dict[str, Any]:
    """The contents of a config.json of Llama."""
    return write_rotary(shape, gated=True) | write_biases(shape)


def llama_faults(shape: Shape) -> set[str]:
    """The options that Llama cannot express."""
    return rotary_faults(
        shape,
        gated=True,
        qk_norm=shape.qk_norm,
        window=any(shape.windows),
        qkv_bias=shape.has_qkv_bias and not shape.bias,
        head_dim=shape.n_embd % shape.n_head > 0,
    )


def read_arcee(fields: Fields) -> dict[str, Any]:
    """The options that a config.json of Arcee has."""
    options = read_rotary(fields, gated=False, act="relu2", eps=1e-5)
    return options | read_biases(fields)


def write_arcee(shape: Shape) -> dict[str, Any]:
    """The contents of a config.json of Arcee."""
    return write_rotary(shape, gated=False) | write_biases(shape)


def arcee_faults(shape: Shape) -> set[str]:
    """The options that Arcee cannot express."""
    return rotary_faults(
        shape,
        gated=False,
        qk_norm=shape.qk_norm,
        window=any(shape.windows),
        qkv_bias=shape.has_qkv_bias and not shape.bias,
        head_dim=shape.n_embd % shape.n_head > 0,
    )


def read_mistral(fields: Fields) -> dict[str, Any]:
    """The options that a config.json of Mistral has."""
    options = read_rotary(fields, gated=True, act="silu", eps=1e-6)
    fields.expect("layer_types", ["sliding_attention"] * min(options["n_layer"], MOST_LAYERS))
    # A config.json without the key has the default of transformers; null is no window.
    window = None if "sliding_window" in fields and fields.get("sliding_window") is None else 4096
    return options | {"window": fields.size("sliding_window", window) if window else None}


def write_mistral(shape: Shape) -> dict[str, Any]:
    """The contents of a config.json of Mistral."""
    return write_rotary(shape, gated=True) | {"sliding_window": shape.windows[0]}


def mistral_faults(shape: Shape) -> set[str]:
    """The options that Mistral cannot express."""
    return rotary_faults(
        shape,
        gated=True,
        qk_norm=shape.qk_norm,
        window_pattern=len(set(shape.windows)) > 1,
        bias=shape.bias,
        qkv_bias=shape.has_qkv_bias and not shape.bias,
    )


def read_qwen2(fields: Fields) -> dict[str, Any]:
    """The options that a config.json of Qwen2 has."""
    options = read_rotary(fields, gated=True, act="silu", eps=1e-6)
    return options | {"qkv_bias": True} | read_windows(fields, options["n_layer"])


def write_qwen2(shape: Shape) -> dict[str, Any]:
    """The contents of a config.json of Qwen2."""
    return write_rotary(shape, gated=True) | write_windows(shape)


def qwen2_faults(shape: Shape) -> set[str]:
    """The options that Qwen2 cannot express."""
    return rotary_faults(shape, gated=True, qk_norm=shape.qk_norm, bias=shape.bias)


def read_qwen3(fields: Fields) -> dict[str, Any]:
    """The options that a config.json of Qwen3 has."""
    options = read_rotary(fields, gated=True, act="silu", eps=1e-6, head_dim=128)
    fields.expect("attention_bias", False)
    options |= {"qk_norm": True, "qk_norm_scale": True}
    return options | read_windows(fields, options["n_layer"])


def write_qwen3(shape: Shape) -> dict[str, Any]:
    """The contents of a config.json of Qwen3."""
    written = write_rotary(shape, gated=True) | write_windows(shape)
    return written | {"attention_bias": False}


def qwen3_faults(shape: Shape) -> set[str]:
    """The options that Qwen3 cannot express."""
    return rotary_faults(
        shape,
        gated=True,
        qk_norm=not shape.qk_norm,
        bias=shape.bias,
        qkv_bias=shape.has_qkv_bias and not shape.bias,
    )


def read_nanochat(fields: Fields) -> dict[str, Any]:
    """The options that a config.json of NanoChat has."""
    options = read_rotary(fields, gated=False, act="relu2", eps=1e-6)
    fields.expect("attention_bias", False)
    capped = "final_logit_softcapping" not in fields or fields.get("final_logit_softcapping")
    cap = fields.number("final_logit_softcapping", 15.0) if capped else None
    return options | {"embed_norm": True, "qk_norm": True, "logit_softcap": cap}


def write_nanochat(shape: Shape) -> dict[str, Any]:
    """The contents of a config.json of NanoChat."""
    written = write_rotary(shape, gated=False) | {"attention_bias": False}
    return written | {"final_logit_softcapping": shape.logit_softcap}


def nanochat_faults(shape: Shape) -> set[str]:
    """The options that NanoChat cannot express."""
    return rotary_faults(
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
