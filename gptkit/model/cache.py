"""Caches: keys and values of earlier calls. Training uses none.

Shapes: B sequences, T new tokens, S tokens that attention sees, nh query heads, nkv key and value
heads, hs = head size.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from gptkit.recipe.options import GPTConfig


class Cache(ABC):
    """Keys and values of earlier calls, and which of them a query may see."""

    length = 0
    """Tokens of earlier calls."""

    def positions(self, tokens: int) -> slice | Tensor:
        """Positions of this call's tokens, as an index into tables of block_size rows."""
        return slice(self.length, self.length + tokens)

    def first_seen(self, q: Tensor, k: Tensor, window: int | None) -> int:
        """The first of the keys (B, nkv, S, hs) that any of the queries (B, nh, T, hs) sees."""
        return 0 if window is None else max(0, k.size(2) - q.size(2) - window + 1)

    def mask(self, q: Tensor, k: Tensor, window: int | None) -> Tensor | None:
        """The keys (B, nkv, S, hs) that each query (B, nh, T, hs) may see, bool (T, S).

        None if T = 1, since the token sees all keys, or T = S, which is plain causal attention.
        """
        T, S = q.size(2), k.size(2)
        windowed = window is not None and window < S
        if not windowed and T in (1, S):
            return None
        seen = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        return seen.triu(S - T - window + 1) if windowed and window else seen

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        dropout: float,
        grouped: bool,
        window: int | None = None,
    ) -> Tensor:
        """Attention of queries (B, nh, T, hs) to keys and values (B, nkv, S, hs), as q.

        With a window, a query sees that many tokens, its own included.
        """
        if first := self.first_seen(q, k, window):
            k, v = k[:, :, first:], v[:, :, first:]
        mask = self.mask(q, k, window)
        return F.scaled_dot_product_attention(
            *(q, k, v),
            attn_mask=mask,
            is_causal=mask is None and q.size(2) == k.size(2),
            dropout_p=dropout,
            enable_gqa=grouped,
        )

    @abstractmethod
    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add this call's keys and values (B, nkv, T, hs); return all, each (B, nkv, S, hs)."""

    @abstractmethod
    def advance(self, tokens: int) -> None:
        """Count the tokens of a finished call."""


class NoCache(Cache):
    """Each call is independent of earlier ones, as in training."""

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """This call's keys and values."""
        return k, v

    def advance(self, tokens: int) -> None:
        """Nothing to count."""


class KVCache(Cache):
    """Keys and values of all tokens so far, so that a call computes only its new tokens.

    Args:
        config: the model's sizes; the cache holds block_size tokens.
        batch_size: sequences that advance together.
        like: a tensor with the dtype and device of the cache.
    """

    def __init__(self, config: GPTConfig, batch_size: int, *, like: Tensor) -> None:
        shape = (config.n_layer, 2, batch_size, config.kv_heads, config.block_size)
        self._buffers = like.new_zeros(*shape, config.head_size)
        self.block_size = config.block_size
        self.length = 0

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's buffers of keys and values, each (B, nkv, block_size, hs)."""
        keys, values = self._buffers[layer]
        return keys, values

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's keys and values; return all so far."""
        stop = self.length + k.size(2)
        keys, values = self.layer(layer)
        keys[:, :, self.length : stop] = k
        values[:, :, self.length : stop] = v
        return keys[:, :, :stop], values[:, :, :stop]

    def advance(self, tokens: int) -> None:
        """Count the tokens of a finished call."""
        self.length += tokens

    def reset(self) -> None:
        """Empty the cache."""
        self.length = 0


class StaticKVCache(Cache):
    """A `KVCache` as buffers of constant shape, for one token at a time.

    No shape or index depends on a value on the host, so a CUDA graph can replay the step.

    Args:
        cache: holds the keys and values, also those of earlier calls.
        position: int64 (1,), position of the token; the caller increments it.
    """

    def __init__(self, cache: KVCache, position: Tensor) -> None:
        self.cache, self.position = cache, position
        self._columns = torch.arange(cache.block_size, device=position.device)

    def positions(self, tokens: int) -> Tensor:
        """The position of the one token."""
        return self.position

    def first_seen(self, q: Tensor, k: Tensor, window: int | None) -> int:
        """0: the shapes do not depend on the position."""
        return 0

    def mask(self, q: Tensor, k: Tensor, window: int | None) -> Tensor:
        """The buffer up to the token itself, or what its window has of it, bool (1, block_size)."""
        seen = self._columns <= self.position
        if window is not None:
            seen &= self._columns > self.position - window
        return seen[None]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the token's keys and values; return the whole buffers."""
        keys, values = self.cache.layer(layer)
        return keys.index_copy_(2, self.position, k), values.index_copy_(2, self.position, v)

    def advance(self, tokens: int) -> None:
        """Nothing to count: the caller increments the position."""


NO_CACHE = NoCache()
