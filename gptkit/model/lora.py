"""LoRA: linear layers that stay as they are, with small trained matrices beside them.

Hu et al. 2021. The layers compute what PEFT's do: x W^T + b, plus dropout(x) A^T B^T alpha / rank
for the rows that an adapter is beside.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gptkit.model.blocks import Linear, MakeLinear
from gptkit.recipe import adapters
from gptkit.recipe.options import GPTConfig, LoraOptions


class LowRank(nn.Module):
    """The product of two small matrices, which is added to rows of a layer's weights.

    Args:
        of: the adapter that it is.
        options: complete.
        scale: how often the product counts.
    """

    def __init__(self, of: adapters.Adapter, options: LoraOptions, scale: float) -> None:
        super().__init__()
        self.start, self.size, self.scale = of.start, of.size, scale
        self.drop = nn.Dropout(options.dropout)
        self.lora_A = Linear(of.size_in, options.rank, bias=False)
        self.lora_B = Linear(options.rank, of.size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., size_in) to (..., size)."""
        y: Tensor = self.lora_B(self.lora_A(self.drop(x)))
        return y * self.scale


class AdaptedLinear(Linear):
    """A linear layer with adapters beside its rows, or beside some of them."""

    def __init__(self, size_in: int, size_out: int, *, bias: bool, beside: Iterable[str]) -> None:
        super().__init__(size_in, size_out, bias=bias)
        self.beside = tuple(beside)
        """The names of the adapters, in the order of their rows."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        y = super().forward(x)
        parts, end = [], 0
        for name in self.beside:
            adapter: LowRank = getattr(self, name)
            if adapter.start > end:
                parts.append(y.new_zeros(*y.shape[:-1], adapter.start - end))
            parts.append(adapter(x))
            end = adapter.start + adapter.size
        if end < y.size(-1):
            parts.append(y.new_zeros(*y.shape[:-1], y.size(-1) - end))
        return y + (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))


def adapted(config: GPTConfig, options: LoraOptions) -> MakeLinear:
    """Makes the linear layers of a model whose adapters the options choose."""
    chosen, scale = adapters.chosen(config, options), adapters.scale(config, options)

    def make(name: str, size_in: int, size_out: int, *, bias: bool) -> nn.Module:
        found = {each.path.removeprefix(f"{name}."): each for each in chosen if each.layer == name}
        if not found:
            return Linear(size_in, size_out, bias=bias)
        layer = AdaptedLinear(size_in, size_out, bias=bias, beside=found)
        for own, each in found.items():
            layer.add_module(own, LowRank(each, options, scale))
        return layer

    return make


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """The layers with adapters, by their names."""
    found = model.named_modules()
    return {name: module for name, module in found if isinstance(module, AdaptedLinear)}
