"""The tensors that a model of transformers has: their names and shapes, and whether they do."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gptkit.plugin import RunError
from gptkit_hf.families import Family, family_of, is_tied, to_options
from gptkit_hf.shape import Shape

Shapes = dict[str, tuple[int, ...]]
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Ends of names of what older files have beside the weights, and models compute themselves."""

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
HEAD = "lm_head.weight"
AGAIN = "get the model again: its files do not fit its config.json"


class CheckedTensors(Mapping[str, Tensor]):
    """The tensors of a model in float32, each read and checked when it is asked for.

    Args:
        config: the contents of its config.json.
        tensors: by transformers' names, of any type of floating-point numbers.

    Raises:
        UsageError: gptkit does not have that architecture.
        RunError: a tensor is missing or superfluous; when it is asked for: it is of another shape
            or type, or has NaN or infinite numbers.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.family, self._tensors = family_of(config), tensors
        self.shape = Shape.of(to_options(config))
        self.shapes = tensor_shapes(self.family, self.shape, tied=self.shape.tie_embeddings)
        _check_names(self.shapes, tensors)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        tensor = self._tensors[name]
        if tuple(tensor.shape) != self.shapes[name]:
            shape, expected = [*tensor.shape], [*self.shapes[name]]
            raise RunError(
                f"{name} has the shape {shape}, config.json describes {expected}", hint=AGAIN
            )
        if tensor.dtype not in TYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise RunError(
                f"{name} has numbers of type {kind}", hint="import a model that is not quantised"
            )
        tensor = tensor.detach().to(torch.float32)
        if not torch.isfinite(tensor).all():
            raise RunError(f"{name} has NaN or infinite numbers", hint="get the model again")
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def tensor_shapes(family: Family, shape: Shape, *, tied: bool | None = None) -> Shapes:
    """Names and shapes of all weights; a tied head is not among them.

    Args:
        family: of the model.
        shape: of the model.
        tied: whether the head is the embedding; if None as an export of gptkit has it.
    """
    tied = is_tied(shape) if tied is None else tied
    found = _gpt2(shape) if family.model_type == "gpt2" else _rotary(family, shape)
    return found if tied else found | {HEAD: (shape.vocab_size, shape.n_embd)}


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


def _check_names(expected: Mapping[str, object], found: Mapping[str, object]) -> None:
    known = [name for name in found if not name.endswith(BUFFERS) and name != HEAD]
    missing = [name for name in expected if name not in found]
    others = [name for name in known if name not in expected]
    for kind, names in (("missing", missing), ("not known", others)):
        if names:
            listed = ", ".join(name[:80] for name in names[:3])
            more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
            raise RunError(f"tensors are {kind}: {listed}{more}", hint=AGAIN)
