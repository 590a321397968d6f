"""The parts of a GPT: context, positions, attention, MLPs, norms, and the block made of them.

Shapes: B sequences, T tokens, C = n_embd, nh query heads, nkv key and value heads, hs = C / nh.
Su et al. 2021 (rotary); Zhang & Sennrich 2019 (RMS norm); So et al. 2021 (squared ReLU); Shazeer
2020 (SwiGLU); Ainslie et al. 2023 (grouped queries).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptkit.recipe.options import GPTConfig

NORM_EPS = 1e-5
ROPE_THETA = 10_000.0


class Context:
    """What attention may look at: here the tokens of this call alone, as in training."""

    length = 0
    """Tokens that came before this call."""

    def positions(self, tokens: int) -> slice | Tensor:
        """Where the tokens of this call stand, as an index into tables of block_size rows."""
        return slice(self.length, self.length + tokens)

    def mask(self, q: Tensor, k: Tensor) -> Tensor | None:
        """What queries (B, nh, T, hs) may see of keys (B, nkv, S, hs), bool (T, S).

        None where a single token sees all, or where no past makes the mask merely causal.
        """
        T, S = q.size(2), k.size(2)
        if T in (1, S):
            return None
        return torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens so far, each (B, nkv, length + T, hs)."""
        return k, v

    def advance(self, tokens: int) -> None:
        """Move on by the tokens of a finished call."""


class KVCache(Context):
    """Context that remembers keys and values, so that a later call computes only its new tokens.

    Args:
        config: the model's sizes; the cache holds block_size tokens.
        batch_size: sequences that advance together.
        like: a tensor of the dtype and device that the cache takes.
    """

    def __init__(self, config: GPTConfig, batch_size: int, *, like: Tensor) -> None:
        shape = (config.n_layer, 2, batch_size, config.kv_heads, config.block_size)
        self._cache = like.new_zeros(*shape, config.head_size)
        self.block_size = config.block_size
        self.length = 0

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's buffers of keys and values, each (B, nkv, block_size, hs)."""
        keys, values = self._cache[layer]
        return keys, values

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's keys and values; return all so far."""
        stop = self.length + k.size(2)
        keys, values = self.layer(layer)
        keys[:, :, self.length : stop] = k
        values[:, :, self.length : stop] = v
        return keys[:, :, :stop], values[:, :, :stop]

    def advance(self, tokens: int) -> None:
        """Move on by the tokens of a finished call."""
        self.length += tokens

    def reset(self) -> None:
        """Forget everything."""
        self.length = 0


class StaticKVCache(Context):
    """A `KVCache` seen as buffers that never change their shape, for one token at a time.

    Nothing here depends on a number that the host knows, so a CUDA graph can repeat it.

    Args:
        cache: holds keys and values, also those of earlier calls.
        position: int64 (1,), where the token stands; whoever calls moves it on.
    """

    def __init__(self, cache: KVCache, position: Tensor) -> None:
        self.cache, self.position = cache, position
        self.places = torch.arange(cache.block_size, device=position.device)

    def positions(self, tokens: int) -> Tensor:
        """The one position."""
        return self.position

    def mask(self, q: Tensor, k: Tensor) -> Tensor:
        """The buffer up to the token itself."""
        return (self.places <= self.position)[None]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the token's keys and values; return the whole buffers."""
        keys, values = self.cache.layer(layer)
        return keys.index_copy_(2, self.position, k), values.index_copy_(2, self.position, v)


NO_CACHE = Context()


class LearnedPosition(nn.Module):
    """A learned vector per position, added to the token embedding."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wpe = nn.Embedding(config.block_size, config.n_embd)

    def embed(self, x: Tensor, positions: slice | Tensor) -> Tensor:
        """Add the vectors of T positions to x (B, T, C)."""
        return x + self.wpe.weight[positions]

    def rotate(self, x: Tensor, positions: slice | Tensor) -> Tensor:
        """Leave queries and keys as they are."""
        return x


class RotaryPosition(nn.Module):
    """Queries and keys rotated by angles that grow with the position; halves as in GPT-NeoX."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        half = config.head_size // 2
        frequencies = ROPE_THETA ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.outer(torch.arange(config.block_size, dtype=torch.float64), frequencies)
        self.register_buffer("cos", angles.cos().float(), persistent=False)  # (block_size, hs/2)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def embed(self, x: Tensor, positions: slice | Tensor) -> Tensor:
        """Leave the embedding as it is."""
        return x

    def rotate(self, x: Tensor, positions: slice | Tensor) -> Tensor:
        """Rotate x (B, nh, T, hs) by the angles of T positions."""
        cos, sin = self.cos[positions].to(x.dtype), self.sin[positions].to(x.dtype)
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


Position = LearnedPosition | RotaryPosition


class Attention(nn.Module):
    """Causal self-attention, with grouped queries where n_kv_head < n_head."""

    def __init__(self, config: GPTConfig, layer: int, position: Position) -> None:
        super().__init__()
        self.layer, self.head_size, self.dropout = layer, config.head_size, config.dropout
        self.sizes = [config.n_embd, *[config.kv_heads * config.head_size] * 2]
        self.grouped = config.kv_heads != config.n_head
        self.qkv = nn.Linear(config.n_embd, sum(self.sizes), bias=config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.qk_norm = PlainNorm(config.head_size) if config.qk_norm else nn.Identity()
        self.rotate = position.rotate  # the tables stay shared

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        q, k, v = (  # each (B, heads, T, hs)
            part.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for part in self.qkv(x).split(self.sizes, dim=-1)
        )
        positions = context.positions(x.size(1))
        q = self.rotate(self.qk_norm(q), positions)
        k = self.rotate(self.qk_norm(k), positions)
        k, v = context.extend(self.layer, k, v)
        mask = context.mask(q, k)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None and q.size(2) == k.size(2),
            dropout_p=self.dropout * self.training,
            enable_gqa=self.grouped,
        )
        return self.proj(y.transpose(1, 2).flatten(2))


class PlainNorm(nn.Module):
    """RMS norm over the last dimension, without a learned scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shape = (width,)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        return F.rms_norm(x, self.shape, eps=NORM_EPS)


class MLP(nn.Module):
    """Two linear layers and a non-linearity between them."""

    width = 1
    """Outputs of the first layer per input of the second."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, self.width * config.inner_size, bias=config.bias)
        self.proj = nn.Linear(config.inner_size, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return self.proj(self.activate(self.up(x)))

    def activate(self, x: Tensor) -> Tensor:
        """GELU in the tanh approximation that GPT-2 uses."""
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
    """Layer norm with a learned scale and, by choice, a bias."""
    return nn.LayerNorm(config.n_embd, eps=NORM_EPS, bias=config.bias)


def rms_norm(config: GPTConfig) -> nn.Module:
    """RMS norm with a learned scale."""
    return nn.RMSNorm(config.n_embd, eps=NORM_EPS)


NORMS: dict[str, Callable[[GPTConfig], nn.Module]] = {"layernorm": layer_norm, "rmsnorm": rms_norm}
POSITIONS: dict[str, type[Position]] = {
    "learned": LearnedPosition,
    "rotary": RotaryPosition,
}
MLPS: dict[str, type[MLP]] = {"gelu": MLP, "relu2": ReLU2, "swiglu": SwiGLU}


class Block(nn.Module):
    """Norm, attention, norm, MLP; each of the two branches is added to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int, position: Position) -> None:
        super().__init__()
        self.ln_1 = NORMS[config.norm](config)
        self.attn = Attention(config, layer, position)
        self.ln_2 = NORMS[config.norm](config)
        self.mlp = MLPS[config.mlp](config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self.drop(self.attn(self.ln_1(x), context))
        return x + self.drop(self.mlp(self.ln_2(x)))
