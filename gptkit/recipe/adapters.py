"""LoRA's adapters: which linear layers can have them, their shapes, and PEFT's names for them.

PEFT reads an adapter beside a transformers model. Two groups of options have layers that
transformers names, too: GPT-2's, where queries, keys and values are one layer, and those of Llama,
Mistral, Qwen and Arcee, where they are three, and a gated MLP has its gate as a layer of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from gptkit.recipe.options import GPTConfig, LoraOptions

T = TypeVar("T")

A, B = "lora_A", "lora_B"
"""Names of the two matrices of an adapter."""
FILE, CONFIG_FILE = "adapter_model", "adapter_config.json"
"""PEFT's names of the files of an adapter, the first without its ending."""
PREFIX = "base_model.model."
"""What PEFT's names begin with."""
BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers", None: "h"}
"""Where transformers has the blocks of a group of models; what it does not know keeps our name."""


@dataclass(frozen=True)
class Adapter:
    """Two small matrices beside a linear layer of a block, or beside some of its rows."""

    target: str
    """Its name in recipes, such as "attn.q"."""
    layer: str
    """The linear layer, such as "attn.qkv"."""
    start: int
    """The first row of the layer's weights that it changes."""
    size: int
    """How many rows."""
    size_in: int
    """Columns of the layer's weights."""
    modules: tuple[str, ...]
    """The layers of a transformers model that it belongs to: two where one is there twice."""

    @property
    def path(self) -> str:
        """Its module in a block."""
        return f"{self.layer}.{self.target.rpartition('.')[2]}"


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter, by its name."""
    return f".{A}." in name or f".{B}." in name


def group_of(config: GPTConfig) -> str | None:
    """The models of transformers whose layers a model has: "gpt2", "llama", or None."""
    if config.embed_norm or config.logit_softcap:
        return None
    if config.norm == "rmsnorm" and config.position == "rotary":
        return "llama" if config.mlp in ("swiglu", "relu2") else None
    plain = config.norm == "layernorm" and config.position == "learned" and config.mlp != "swiglu"
    whole = config.bias and config.has_qkv_bias and config.kv_heads == config.n_head
    square = config.qkv_sizes[0] == config.n_embd and not config.qk_norm and not config.window
    return "gpt2" if plain and whole and square else None


def known(config: GPTConfig) -> dict[str, Adapter]:
    """All adapters that a block of a model can have, by their names in recipes."""
    group, width, inner = group_of(config), config.n_embd, config.inner_size
    rows: dict[str, tuple[str, int, int, int]] = {}  # layer, start, size, size_in
    if group == "gpt2":
        rows["attn.qkv"] = ("attn.qkv", 0, sum(config.qkv_sizes), width)
    else:
        q, k, v = config.qkv_sizes
        rows["attn.q"] = ("attn.qkv", 0, q, width)
        rows["attn.k"] = ("attn.qkv", q, k, width)
        rows["attn.v"] = ("attn.qkv", q + k, v, width)
    rows["attn.proj"] = ("attn.proj", 0, width, config.qkv_sizes[0])
    if config.mlp == "swiglu":
        rows["mlp.gate"] = ("mlp.up", 0, inner, width)
        rows["mlp.up"] = ("mlp.up", inner, inner, width)
    else:
        rows["mlp.up"] = ("mlp.up", 0, inner, width)
    rows["mlp.proj"] = ("mlp.proj", 0, width, inner)
    names = _modules(config)
    return {
        target: Adapter(target, *found, names.get(target, (target,)))
        for target, found in rows.items()
    }


def resolved(config: GPTConfig, options: LoraOptions) -> LoraOptions:
    """The options with those filled in that are unset."""
    targets = options.targets or tuple(known(config))
    alpha = float(options.alpha or 2 * options.rank)
    return options.model_copy(update={"alpha": alpha, "targets": targets})


def chosen(config: GPTConfig, options: LoraOptions) -> list[Adapter]:
    """The adapters of a block, in the order of the layers' rows."""
    targets = resolved(config, options).targets or ()
    return [adapter for target, adapter in known(config).items() if target in targets]


def scale(config: GPTConfig, options: LoraOptions) -> float:
    """How often the product of B and A counts."""
    return float(resolved(config, options).alpha or 0.0) / options.rank


def block_shapes(config: GPTConfig, options: LoraOptions) -> dict[str, tuple[int, int]]:
    """The shapes of the adapters of a block, by the names of the parameters in it."""
    found = {}
    for adapter in chosen(config, options):
        found[f"{adapter.path}.{A}.weight"] = (options.rank, adapter.size_in)
        found[f"{adapter.path}.{B}.weight"] = (adapter.size, options.rank)
    return found


def parameter_shapes(config: GPTConfig, options: LoraOptions) -> dict[str, tuple[int, int]]:
    """The shapes of all adapters, by the names of the parameters."""
    block = block_shapes(config, options)
    return {f"h.{i}.{name}": s for i in range(config.n_layer) for name, s in block.items()}


def peft_names(config: GPTConfig, options: LoraOptions) -> dict[str, list[str]]:
    """PEFT's names of each parameter of the adapters."""
    blocks, found = BLOCKS[group_of(config)], {}
    for i in range(config.n_layer):
        for adapter in chosen(config, options):
            for matrix in (A, B):
                found[f"h.{i}.{adapter.path}.{matrix}.weight"] = [
                    f"{PREFIX}{blocks}.{i}.{module}.{matrix}.weight" for module in adapter.modules
                ]
    return found


def to_peft(config: GPTConfig, options: LoraOptions, tensors: Mapping[str, T]) -> dict[str, T]:
    """Adapters under PEFT's names."""
    names = peft_names(config, options)
    return {theirs: tensor for name, tensor in tensors.items() for theirs in names[name]}


def from_peft(config: GPTConfig, options: LoraOptions, tensors: Mapping[str, T]) -> dict[str, T]:
    """Adapters that have PEFT's names under those of the model's parameters."""
    return {name: tensors[theirs[0]] for name, theirs in peft_names(config, options).items()}


def peft_config(config: GPTConfig, options: LoraOptions) -> dict[str, Any]:
    """The contents of PEFT's adapter_config.json."""
    whole = resolved(config, options)
    alpha = whole.alpha or 0.0
    modules = [module for adapter in chosen(config, options) for module in adapter.modules]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": whole.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": whole.dropout,
        "target_modules": modules,
        "fan_in_fan_out": group_of(config) == "gpt2",  # its Conv1D has its weights transposed
        "bias": "none",
        "use_rslora": False,
        "inference_mode": True,
    }


def _modules(config: GPTConfig) -> dict[str, tuple[str, ...]]:
    """The layers of a block that transformers has, by the names of adapters."""
    match group_of(config):
        case "gpt2":
            return {
                "attn.qkv": ("attn.c_attn",), "attn.proj": ("attn.c_proj",),
                "mlp.up": ("mlp.c_fc",), "mlp.proj": ("mlp.c_proj",),
            }  # fmt: skip
        case "llama":
            # Only Arcee has relu(x)^2; in other classes the gate is the upper layer once more.
            arcee = not config.qk_norm and config.windows == {None}
            arcee = arcee and config.has_qkv_bias == config.bias
            twice = config.mlp == "relu2" and not arcee
            gate = ("mlp.gate_proj",)
            return {
                **{f"attn.{part}": (f"self_attn.{part}_proj",) for part in "qkv"},
                "attn.proj": ("self_attn.o_proj",), "mlp.gate": gate,
                "mlp.up": ("mlp.up_proj", *(gate if twice else ())),
                "mlp.proj": ("mlp.down_proj",),
            }  # fmt: skip
    return {}
