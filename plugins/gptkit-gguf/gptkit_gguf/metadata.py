"""From the metadata of a GGUF file to the contents of a config.json of transformers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gptkit.plugin import RunError, UsageError
from gptkit_gguf.header import Header
from gptkit_gguf.names import layout
from gptkit_gguf.rope import scaling_of

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "arcee": "ArceeForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
"""What is read: GGUF's name of an architecture, and the class that transformers has for it."""
ROPE_FACTORS = "rope_freqs.weight"
KNOWN = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon",
    "attention.sliding_window", "rope.dimension_count", "rope.freq_base", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "tensor_data_layout",
}  # fmt: skip
"""Keys of an architecture that are understood. Others may change what the model computes."""
HARMLESS: Mapping[str, object] = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "use_parallel_residual": False,
    "rope.scaling.attn_factor": 1.0,
}
"""Keys that change nothing if they have this value."""
LARGEST = 1 << 31  # of any size


def config_of(header: Header) -> dict[str, Any]:
    """The contents of a config.json for the model in a GGUF file, whose tensors fit to it.

    Raises:
        UsageError: the architecture, or a part of it, is not supported.
        RunError: the file contradicts itself.
    """
    reader = _Reader(header)
    config = reader.gpt2() if reader.family == "gpt2" else reader.llama()
    _check_tensors(header, config)
    return config


class _Reader:
    """Reads the keys of the file's architecture."""

    def __init__(self, header: Header) -> None:
        self.header, self.path = header, header.path
        family = header.fields.get("general.architecture")
        if not isinstance(family, str) or family not in FAMILIES:
            raise UsageError(
                f"{self.path}: the architecture {family!r} is not supported",
                hint=f"supported: {', '.join(FAMILIES)}",
            )
        if header.fields.get("split.count", 1) not in (0, 1):
            raise UsageError(
                f"{self.path}: is one of {header.fields['split.count']} files of a model",
                hint="join them first: llama-gguf-split --merge FIRST-FILE OUT.gguf",
            )
        self.family: str = family
        self._check_known()

    def gpt2(self) -> dict[str, Any]:
        """The config of a GPT-2."""
        heads = self.size("attention.head_count")
        if self.size("attention.head_count_kv", heads) != heads:
            raise UsageError(f"{self.path}: gpt2.attention.head_count_kv is not supported")
        return {
            **self._common(),
            "n_layer": self.size("block_count"),
            "n_head": heads,
            "n_embd": self.size("embedding_length"),
            "n_inner": self.size("feed_forward_length"),
            "n_positions": self.size("context_length"),
            "layer_norm_epsilon": self.number("attention.layer_norm_epsilon"),
            "activation_function": "gelu_new",
        }

    def llama(self) -> dict[str, Any]:
        """The config of a Llama, or of one of its relatives."""
        width, heads = self.size("embedding_length"), self.size("attention.head_count")
        head_dim = self.size("attention.key_length", max(1, width // heads))
        for key in ("attention.value_length", "rope.dimension_count"):
            if self.size(key, head_dim) != head_dim:
                raise UsageError(
                    f"{self.path}: {self.family}.{key}, {self.size(key)}, should be the size of a "
                    f"head, {head_dim}: anything else is not supported"
                )
        biased = {
            "attention_bias": self._has("blk.0.attn_output.bias"),
            "mlp_bias": self._has("blk.0.ffn_up.bias"),
        }
        return {
            **self._common(),
            **({} if self.family == "qwen2" else biased),
            "num_hidden_layers": self.size("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.size("attention.head_count_kv", heads),
            "hidden_size": width,
            "intermediate_size": self.size("feed_forward_length"),
            "head_dim": head_dim,
            "max_position_embeddings": self.size("context_length"),
            "rms_norm_eps": self.number("attention.layer_norm_rms_epsilon"),
            "hidden_act": "relu2" if self.family == "arcee" else "silu",
            **self._rotation(head_dim),
            **self._window(),
        }

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < LARGEST:
            raise UsageError(f"{self.path}: {self.family}.{key} is {value!r}: not supported")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number, with no more digits than float32 has."""
        value = self._get(key, default)
        if not isinstance(value, float) or not 0 < value < np.inf:
            raise RunError(f"{self.path}: damaged: {self.family}.{key} is {value!r}")
        return float(str(np.float32(value)))

    def _get(self, key: str, default: object) -> object:
        value = self.header.fields.get(f"{self.family}.{key}", default)
        if value is None:
            raise RunError(f"{self.path}: damaged: {self.family}.{key} is missing")
        return value

    def _has(self, tensor: str) -> bool:
        return tensor in self.header.tensors

    def _common(self) -> dict[str, Any]:
        embedding = self.header.tensors.get("token_embd.weight")
        if embedding is None:
            raise RunError(f"{self.path}: damaged: the tensor token_embd.weight is missing")
        return {
            "model_type": self.family,
            "architectures": [FAMILIES[self.family]],
            "vocab_size": embedding.shape[0],
            "tie_word_embeddings": not self._has("output.weight"),
        }

    def _rotation(self, head_dim: int) -> dict[str, Any]:
        """What positions turn; a scaling that is not Llama 3's is refused."""
        # Where only a factor is there, llama.cpp takes the scaling for a linear one.
        scaled = self._get("rope.scaling.factor", 1.0) not in (0, 1)
        kind = self._get("rope.scaling.type", "linear" if scaled else "none")
        if kind != "none":
            raise UsageError(
                f"{self.path}: {self.family}.rope.scaling.type is {kind!r}: not supported",
                hint="supported: none, and Llama 3's, which is the tensor rope_freqs.weight",
            )
        rotation: dict[str, Any] = {"rope_theta": self.number("rope.freq_base", 10_000.0)}
        if self._has(ROPE_FACTORS):
            theta = rotation["rope_theta"]
            original = self.size("rope.scaling.original_context_length", 8192)
            rotation["rope_scaling"] = scaling_of(self.header, theta, head_dim, original)
        return rotation

    def _window(self) -> dict[str, Any]:
        key = "attention.sliding_window"
        if not self.header.fields.get(f"{self.family}.{key}"):
            return {}
        if self.size(key) >= self.size("context_length"):
            return {}
        if self.family != "llama":
            raise UsageError(f"{self.path}: {self.family}.{key} is not supported")
        return {
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "sliding_window": self.size(key),
        }

    def _check_known(self) -> None:
        prefix = f"{self.family}."
        for key, value in self.header.fields.items():
            name = key.removeprefix(prefix)
            unknown = name != key and name not in KNOWN
            if unknown and (name not in HARMLESS or HARMLESS[name] != value):
                shown = "" if isinstance(value, list) else f", {value!r},"
                raise UsageError(f"{self.path}: {key}{shown} is not supported")


def _check_tensors(header: Header, config: Mapping[str, Any]) -> None:
    """Refuse a file that lacks a tensor, has another one, or one of another shape."""
    _check_room(header, config)
    places = layout(config).values()
    for place in places:
        found = header.tensors.get(place.name)
        if found is None:
            raise RunError(f"{header.path}: damaged: the tensor {place.name} is missing")
        if found.shape != place.shape:
            raise RunError(
                f"{header.path}: damaged: the tensor {place.name} has the shape "
                f"{list(found.shape)}, where the metadata asks for {list(place.shape)}"
            )
    others = header.tensors.keys() - {place.name for place in places} - {ROPE_FACTORS}
    if others:
        family = header.fields["general.architecture"]
        raise UsageError(
            f"{header.path}: the tensor {min(others)} of this {family} is not supported"
        )


def _check_room(header: Header, config: Mapping[str, Any]) -> None:
    """Refuse more layers than there are tensors, before a list of all is made."""
    layers = config.get("n_layer") or config["num_hidden_layers"]
    if layers > len(header.tensors):
        raise RunError(
            f"{header.path}: damaged: {layers:,} layers, but {len(header.tensors):,} tensors"
        )
    heads = config.get("n_head") or config["num_attention_heads"]
    groups = config.get("num_key_value_heads", heads)
    if heads % groups or (config.get("n_embd") or heads) % heads:
        raise RunError(f"{header.path}: damaged: {heads} heads do not divide its sizes")
