"""Architectures of transformers: config.json to the options of [model], and back.

Sources: transformers' own configuration and modelling files. Defaults are those of its classes,
since a config.json may leave them out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gptkit.plugin import UsageError
from gptkit_hf import classes
from gptkit_hf.fields import Fields, refuse_all, told
from gptkit_hf.rotary import MOST_LAYERS
from gptkit_hf.shape import Shape

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
    if shape.n_layer > MOST_LAYERS:
        raise UsageError(f"model.n_layer: {shape.n_layer:,}, should be at most {MOST_LAYERS:,}")
    found = {family: family.faults(shape) for family in FAMILIES.values()}
    fewest = min(map(len, found.values()))
    nearest = {family: faults for family, faults in found.items() if len(faults) == fewest}
    if fewest:
        near = "; ".join(
            f"{family.architecture}, but for {' and '.join(f'model.{n}' for n in sorted(faults))}"
            for family, faults in nearest.items()
        )
        raise UsageError(
            f"no model of transformers has all these options; the nearest: {near}",
            hint=EXPORT_HINT,
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


# The order in which they are tried for an export. Those with a gate need each matrix of a squared
# ReLU twice, so they come later; Llama comes before those that have windows or zero biases besides.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("nanochat", "NanoChatForCausalLM", False, "model.",
               classes.read_nanochat, classes.write_nanochat, classes.nanochat_faults),
        Family("gpt2", "GPT2LMHeadModel", False, "transformer.",
               classes.read_gpt2, classes.write_gpt2, classes.gpt2_faults),
        Family("arcee", "ArceeForCausalLM", False, "model.",
               classes.read_arcee, classes.write_arcee, classes.arcee_faults),
        Family("llama", "LlamaForCausalLM", True, "model.",
               classes.read_llama, classes.write_llama, classes.llama_faults),
        Family("mistral", "MistralForCausalLM", True, "model.",
               classes.read_mistral, classes.write_mistral, classes.mistral_faults),
        Family("qwen2", "Qwen2ForCausalLM", True, "model.",
               classes.read_qwen2, classes.write_qwen2, classes.qwen2_faults),
        Family("qwen3", "Qwen3ForCausalLM", True, "model.",
               classes.read_qwen3, classes.write_qwen3, classes.qwen3_faults),
    )
}  # fmt: skip
