"""The plain model of one with adapters: their products are added to its weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gptkit.model.gpt import GPT, is_sharded
from gptkit.model.lora import AdaptedLinear, LowRank, adapted_layers
from gptkit.recipe.adapters import is_adapter
from gptkit.training.sharding import full_tensor, local_part, with_rows


def merged(model: GPT, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the plain model; those of a model without adapters as they are.

    Under `shard = true` all ranks must call it, and each gets its rows.

    Args:
        model: says which adapters there are.
        tensors: its parameters by name, or others like them.
    """
    found = {name: tensor for name, tensor in tensors.items() if not is_adapter(name)}
    for name, layer in adapted_layers(model).items():
        found[f"{name}.weight"] = _merged(name, layer, tensors)
    return found


def adapters_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters among parameters."""
    return {name: tensor for name, tensor in tensors.items() if is_adapter(name)}


@torch.no_grad()
def _merged(name: str, layer: AdaptedLinear, tensors: Mapping[str, Tensor]) -> Tensor:
    """The weights (out, in) of a layer with those of its adapters."""
    weight = tensors[f"{name}.weight"].detach()
    first, rows = local_part(weight)
    rows = rows.clone()
    for own in layer.beside:
        adapter: LowRank = getattr(layer, own)
        a, b = (full_tensor(tensors[f"{name}.{own}.{m}.weight"]) for m in ("lora_A", "lora_B"))
        start = max(first, adapter.start)
        stop = min(first + len(rows), adapter.start + adapter.size)
        if start < stop:
            changed = b[start - adapter.start : stop - adapter.start] @ a
            rows[start - first : stop - first] += changed * adapter.scale
    return with_rows(weight, rows) if is_sharded(weight) else rows
