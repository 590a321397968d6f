"""Shape: the options of [model], each with a value, and what follows from them."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

from gptkit.plugin import UsageError

IRRELEVANT = {"preset", "dropout", "init", "freeze"}
"""Options that say nothing about the model's logits."""


@dataclass(frozen=True)
class Shape:
    """The architecture of a GPT; the fields have gptkit's names, meanings and defaults."""

    n_layer: int
    n_head: int
    n_embd: int
    vocab_size: int
    block_size: int
    n_kv_head: int | None = None
    n_inner: int | None = None
    head_dim: int | None = None
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    position: str = "learned"
    rope_theta: float = 10_000.0
    rope_scaling: Mapping[str, Any] | None = None
    mlp: str = "gelu"
    embed_norm: bool = False
    qk_norm: bool = False
    qk_norm_scale: bool = False
    bias: bool = True
    qkv_bias: bool | None = None
    tie_embeddings: bool = True
    window: int | None = None
    window_pattern: str = "S"
    logit_softcap: float | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Read the options of a model.

        Raises:
            UsageError: there is an option that this version does not know.
        """
        known = {field.name for field in fields(cls)}
        given = {name: value for name, value in options.items() if name not in IRRELEVANT}
        unknown = [n for n, value in given.items() if n not in known and value not in (None, False)]
        if unknown:
            names = ", ".join(f"model.{name}" for name in unknown)
            raise UsageError(f"gptkit-hf does not know {names}", hint="install a newer gptkit-hf")
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in given]
        assert not missing, missing
        return cls(**{name: value for name, value in given.items() if name in known})

    @property
    def head_size(self) -> int:
        """Width of an attention head."""
        return self.head_dim or self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.n_kv_head or self.n_head

    @property
    def query_size(self) -> int:
        """Width of all query heads."""
        return self.n_head * self.head_size

    @property
    def kv_size(self) -> int:
        """Width of all key heads, which is that of all value heads."""
        return self.kv_heads * self.head_size

    @property
    def inner_size(self) -> int:
        """Width inside the MLP."""
        if self.n_inner:
            return self.n_inner
        return -(-8 * self.n_embd // 3 // 64) * 64 if self.mlp == "swiglu" else 4 * self.n_embd

    @property
    def has_qkv_bias(self) -> bool:
        """Whether queries, keys and values have a bias."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def windows(self) -> list[int | None]:
        """For each layer how many tokens a token sees, itself included; None for all."""
        if self.window is None or self.window >= self.block_size:
            return [None] * self.n_layer
        letters = [self.window_pattern[i % len(self.window_pattern)] for i in range(self.n_layer)]
        return [self.window if letter == "S" else None for letter in letters]
