"""From the contents of a config.json to the metadata of a GGUF file; what has no place there."""

from collections.abc import Mapping
from typing import Any

from gptkit.plugin import UsageError

NAMES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "arcee": "arcee",
    "gpt2": "gpt2",
}  # fmt: skip
"""llama.cpp's architecture for a family of transformers."""
ACTIVATIONS = {"arcee": ("relu2",), "gpt2": ("gelu_new", "gelu")}
"""What llama.cpp computes in the feed-forward layers where it is not SiLU; GELU nearly."""


def keys_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a model, without its tokenizer.

    Args:
        config: contents of a config.json that `check` has passed.
    """
    family = NAMES[config["model_type"]]
    sizes = _gpt2(config) if family == "gpt2" else _llama(config)
    return {"general.architecture": family} | {
        f"{family}.{key}": value for key, value in sizes.items()
    }


def check(config: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """The architecture of llama.cpp that computes what a model does.

    Args:
        config: the model as a config.json has it.
        options: the same model in options of `[model]`.

    Raises:
        UsageError: there is none; it names the options.
    """
    family = NAMES.get(config["model_type"])
    faults = _faults(config, options) if family else _foreign(options)
    if faults:
        raise UsageError(
            "gguf: llama.cpp cannot express " + ", ".join(f"model.{name}" for name in faults),
            hint="export it as ONNX or for transformers: --to onnx, --to hf",
        )
    assert family is not None
    return family


def _gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "context_length": config["n_positions"],
        "embedding_length": config["n_embd"],
        "block_count": config["n_layer"],
        "feed_forward_length": config.get("n_inner") or 4 * config["n_embd"],
        "attention.head_count": config["n_head"],
        "attention.layer_norm_epsilon": float(config["layer_norm_epsilon"]),
    }


def _llama(config: Mapping[str, Any]) -> dict[str, Any]:
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    scaling = rope_scaling(config)
    original = scaling and {
        "rope.scaling.original_context_length": scaling["original_max_position_embeddings"]
    }
    return {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": size,
        "rope.freq_base": rope_theta(config),
        "vocab_size": config["vocab_size"],
        **(original or {}),
    }


def rope_theta(config: Mapping[str, Any]) -> float:
    """The base of the rotation's frequencies; newer versions of transformers have it in a table."""
    found = config.get("rope_parameters") or config
    return float(found.get("rope_theta", 10_000.0))


def rope_scaling(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The scaling of the rotation's frequencies, if there is one."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    return found if found and found.get("rope_type", "default") != "default" else None


def _faults(config: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """The options that this architecture of llama.cpp lacks."""
    family = config["model_type"]
    activation = config.get("activation_function") or config["hidden_act"]
    faults = []
    if activation not in ACTIVATIONS.get(family, ("silu",)):
        faults += ["mlp", "qk_norm"] if family == "qwen3" else ["mlp"]
    if family.startswith("qwen") and rope_scaling(config):
        faults.append("rope_scaling")
    if family in ("arcee", "qwen3") and config.get("attention_bias"):
        faults.append("bias")
    if (window := options.get("window")) and window < options["block_size"]:
        faults.append("window")
    return faults


def _foreign(options: Mapping[str, Any]) -> list[str]:
    """The options that make a model one of a family that llama.cpp lacks."""
    return [name for name in ("embed_norm", "logit_softcap", "mlp") if options.get(name)]
