"""The parts of a GPT: positions, attention, MLPs, norms, and the block made of them.

Shapes: B sequences, T tokens, C = n_embd, nh query heads, nkv key and value heads, hs = C / nh.
Su et al. 2021 (rotary); Zhang & Sennrich 2019 (RMS norm); Hendrycks & Gimpel 2016 (GELU); So et al.
2021 (squared ReLU); Shazeer 2020 (SwiGLU); Ainslie et al. 2023 (grouped queries).
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptkit.model import cpu
from gptkit.model.cache import Cache
from gptkit.recipe.options import NORM_EPS, ROPE_THETA, GPTConfig

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
        half = config.head_size // 2
        count = partial(torch.arange, dtype=torch.float64, device="cpu")  # on meta, too
        angles = torch.outer(count(config.block_size), ROPE_THETA ** (-count(half) / half))
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


class Attention(nn.Module):
    """Causal self-attention, with grouped queries if n_kv_head < n_head."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_size, self.dropout = layer, config.head_size, config.dropout
        self.sizes = [config.n_embd, *[config.kv_heads * config.head_size] * 2]
        self.grouped = config.kv_heads != config.n_head
        self.qkv = Linear(config.n_embd, sum(self.sizes), bias=config.bias)
        self.proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.qk_norm = plain_norm(config.head_size) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, cache: Cache, angles: Angles | None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        q, k, v = (  # each (B, heads, T, hs)
            part.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for part in self.qkv(x).split(self.sizes, dim=-1)
        )
        q, k = rotate(self.qk_norm(q), angles), rotate(self.qk_norm(k), angles)
        k, v = cache.extend(self.layer, k, v)
        dropout = self.dropout * self.training
        y = cache.attend(q, k, v, dropout=dropout, grouped=self.grouped)
        return self.proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers and a non-linearity between them."""

    width = 1
    """Outputs of the first layer per input of the second."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = Linear(config.n_embd, self.width * config.inner_size, bias=config.bias)
        self.proj = Linear(config.inner_size, config.n_embd, bias=config.bias)

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


def layer_norm(config: GPTConfig) -> nn.Module:
    """Layer norm with a learned scale and an optional bias."""
    return nn.LayerNorm(config.n_embd, eps=NORM_EPS, bias=config.bias)


def rms_norm(config: GPTConfig) -> nn.Module:
    """RMS norm with a learned scale."""
    return nn.RMSNorm(config.n_embd, eps=NORM_EPS)


def plain_norm(width: int) -> nn.Module:
    """RMS norm without a learned scale."""
    return nn.RMSNorm(width, eps=NORM_EPS, elementwise_affine=False)


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

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = NORMS[config.norm](config)
        self.attn = Attention(config, layer)
        self.ln_2 = NORMS[config.norm](config)
        self.mlp = MLPS[config.mlp](config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: Cache, angles: Angles | None) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self.drop(self.attn(self.ln_1(x), cache, angles))
        return x + self.drop(self.mlp(self.ln_2(x)))
