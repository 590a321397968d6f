"""The parts of a GPT: positions, attention, MLPs, norms, and the block made of them.

Shapes: B sequences, T tokens, C = n_embd, nh query heads, nkv key and value heads, hs = head size.
Su et al. 2021 (rotary); Zhang & Sennrich 2019 (RMS norm); Hendrycks & Gimpel 2016 (GELU); So et al.
2021 (squared ReLU); Shazeer 2020 (SwiGLU); Ainslie et al. 2023 (grouped queries).
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptkit.model import cpu, rotary
from gptkit.model.cache import Cache
from gptkit.recipe.options import GPTConfig

Angles = tuple[Tensor, Tensor]
"""Cosines and sines of T positions, each float32 (1, T, hs / 2), or (B, 1, T, hs / 2)."""


class LearnedPosition(nn.Module):
    """A learned vector per position, added to the token embedding."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wpe = nn.Embedding(config.block_size, config.n_embd)

    def embed(self, x: Tensor, positions: slice | Tensor) -> Tensor:
        """Add the vectors of positions, (T,) or (B, T), to x (B, T, C)."""
        if isinstance(positions, slice):
            return x + self.wpe.weight[positions]
        # Not weight[positions]: threads of a CPU add its gradients in any order.
        return x + self.wpe(positions)

    def angles(self, positions: slice | Tensor) -> None:
        """None: queries and keys are not rotated."""


class RotaryPosition(nn.Module):
    """Queries and keys rotated by angles that grow with the position; halves as in GPT-NeoX."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        angles = torch.from_numpy(rotary.angles(config))  # on the CPU, also of a model on meta
        self.register_buffer("cos", angles.cos().float(), persistent=False)  # (block_size, hs/2)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def embed(self, x: Tensor, positions: slice | Tensor) -> Tensor:
        """Leave the embedding unchanged."""
        return x

    def angles(self, positions: slice | Tensor) -> Angles:
        """Cosines and sines of positions, (T,) or (B, T), for all layers and heads."""
        return self.cos[positions].unsqueeze(-3), self.sin[positions].unsqueeze(-3)


Position = LearnedPosition | RotaryPosition


def rotate(x: Tensor, angles: Angles | None) -> Tensor:
    """Rotate x (B, nh, T, hs) by the angles of T positions; None leaves it unchanged."""
    if angles is None:
        return x
    cos, sin = (table.to(x.dtype) for table in angles)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Linear(nn.Linear):
    """torch's linear layer, with the faster products of `gptkit.model.cpu` where they apply."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return cpu.linear(x, self.weight, self.bias) if cpu.trains(x) else super().forward(x)


class MakeLinear(Protocol):
    """Makes a linear layer of a block."""

    def __call__(self, name: str, size_in: int, size_out: int, *, bias: bool) -> nn.Module:
        """The layer from size_in to size_out numbers; its name in the block is "mlp.up" or so."""


def plain_linear(name: str, size_in: int, size_out: int, *, bias: bool) -> Linear:
    """A linear layer, whatever its name is."""
    return Linear(size_in, size_out, bias=bias)


class Attention(nn.Module):
    """Causal self-attention, with grouped queries if n_kv_head < n_head."""

    def __init__(self, config: GPTConfig, layer: int, linear: MakeLinear) -> None:
        super().__init__()
        self.layer, self.head_size, self.dropout = layer, config.head_size, config.dropout
        self.sizes, self.window = config.qkv_sizes, config.window_of(layer)
        self.grouped = config.kv_heads != config.n_head
        width, inner = config.n_embd, config.qkv_sizes[0]
        self.qkv = linear("attn.qkv", width, sum(self.sizes), bias=config.has_qkv_bias)
        self.proj = linear("attn.proj", inner, width, bias=config.bias)
        self.q_norm, self.k_norm = qk_norm(config), qk_norm(config)

    def forward(self, x: Tensor, cache: Cache, angles: Angles | None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        q, k, v = (  # each (B, heads, T, hs)
            part.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for part in self.qkv(x).split(self.sizes, dim=-1)
        )
        q, k = rotate(self.q_norm(q), angles), rotate(self.k_norm(k), angles)
        k, v = cache.extend(self.layer, k, v)
        dropout = self.dropout * self.training
        y = cache.attend(q, k, v, dropout=dropout, grouped=self.grouped, window=self.window)
        return self.proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers and a non-linearity between them."""

    width = 1
    """Outputs of the first layer per input of the second."""

    def __init__(self, config: GPTConfig, linear: MakeLinear) -> None:
        super().__init__()
        width, inner, bias = config.n_embd, config.inner_size, config.bias
        self.up = linear("mlp.up", width, self.width * inner, bias=bias)
        self.proj = linear("mlp.proj", inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return self.proj(self.activate(self.up(x)))

    def activate(self, x: Tensor) -> Tensor:
        """GELU."""
        return F.gelu(x)


class TanhGELU(MLP):
    """An MLP with the tanh approximation of GELU, which GPT-2 has."""

    def activate(self, x: Tensor) -> Tensor:
        """GELU in the tanh approximation."""
        return F.gelu(x, approximate="tanh")


class ReLU2(MLP):
    """An MLP with the squared ReLU."""

    def activate(self, x: Tensor) -> Tensor:
        """max(x, 0) squared."""
        return F.relu(x).square()


class SwiGLU(MLP):
    """An MLP in which one half of the inner layer gates the other through SiLU."""

    width = 2

    def activate(self, x: Tensor) -> Tensor:
        """(..., 2 * inner) to (..., inner)."""
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class SoftCap(nn.Module):
    """Keeps logits x between -c and c: c * tanh(x / c) (Gemma 2, Riviere et al. 2024)."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, x: Tensor) -> Tensor:
        """As x."""
        return self.cap * torch.tanh(x / self.cap)


def layer_norm(config: GPTConfig) -> nn.Module:
    """Layer norm with a learned scale and an optional bias."""
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias)


def rms_norm(config: GPTConfig) -> nn.Module:
    """RMS norm with a learned scale."""
    return nn.RMSNorm(config.n_embd, eps=config.norm_eps)


def embed_norm(config: GPTConfig) -> nn.Module:
    """RMS norm of the embedding, without a learned scale; or none."""
    if not config.embed_norm:
        return nn.Identity()
    return nn.RMSNorm(config.n_embd, eps=config.norm_eps, elementwise_affine=False)


def qk_norm(config: GPTConfig) -> nn.Module:
    """RMS norm of each query or key, with a learned scale if there is to be one; or none."""
    if not config.qk_norm:
        return nn.Identity()
    return nn.RMSNorm(
        config.head_size, eps=config.norm_eps, elementwise_affine=config.qk_norm_scale
    )


NORMS: dict[str, Callable[[GPTConfig], nn.Module]] = {"layernorm": layer_norm, "rmsnorm": rms_norm}
POSITIONS: dict[str, type[Position]] = {
    "learned": LearnedPosition,
    "rotary": RotaryPosition,
}
MLPS: dict[str, type[MLP]] = {
    "gelu": MLP,
    "gelu_tanh": TanhGELU,
    "relu2": ReLU2,
    "swiglu": SwiGLU,
}


class Block(nn.Module):
    """Norm, attention, norm, MLP; each of the two branches is added to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int, linear: MakeLinear = plain_linear) -> None:
        super().__init__()
        self.ln_1 = NORMS[config.norm](config)
        self.attn = Attention(config, layer, linear)
        self.ln_2 = NORMS[config.norm](config)
        self.mlp = MLPS[config.mlp](config, linear)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: Cache, angles: Angles | None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self.drop(self.attn(self.ln_1(x), cache, angles))
        return x + self.drop(self.mlp(self.ln_2(x)))
