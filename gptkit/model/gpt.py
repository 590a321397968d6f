"""GPT: token and position embedding, blocks, a head (Radford et al. 2019).

Shapes: B sequences, T tokens, C = n_embd.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptkit.errors import CheckpointError
from gptkit.model.blocks import (
    MLP,
    NO_CACHE,
    NORMS,
    POSITIONS,
    Attention,
    Block,
    Context,
    PlainNorm,
)
from gptkit.recipe.options import GPTConfig


class GPT(nn.Module):
    """A decoder-only transformer over token ids."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        """Whether training keeps only what enters each block and computes the rest again."""
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.position = POSITIONS[config.position](config)
        self.embed_norm = PlainNorm(config.n_embd) if config.embed_norm else nn.Identity()
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, i, self.position) for i in range(config.n_layer))
        self.ln_f = NORMS[config.norm](config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.wte.weight
        self.apply(self._init)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy in nats of targets y given inputs x, both int64 (B, T)."""
        return F.cross_entropy(self.logits(x).flatten(0, 1), y.flatten(), ignore_index=-100)

    def logits(self, x: Tensor, context: Context = NO_CACHE) -> Tensor:
        """Unnormalised log-probabilities of the next token, (B, T) to (B, T, vocab_size).

        With a `KVCache`, x holds only the tokens that follow those of earlier calls.
        """
        return self.lm_head(self.features(x, context))

    def next_logits(self, x: Tensor, context: Context) -> Tensor:
        """Logits of the token after the last one alone, (B, T) to (B, vocab_size)."""
        return self.lm_head(self.features(x, context)[:, -1])

    def features(self, x: Tensor, context: Context = NO_CACHE) -> Tensor:
        """The residual stream after the last norm, (B, T) to (B, T, C)."""
        h = self.embed(x, context.positions(x.size(1)))
        for block in self.h:
            h = self._run(block, h, context)
        context.advance(x.size(1))
        return self.ln_f(h)

    def embed(self, x: Tensor, positions: slice | Tensor) -> Tensor:
        """The residual stream before the first block, (B, T) to (B, T, C)."""
        return self.drop(self.embed_norm(self.position.embed(self.wte(x), positions)))

    def layer_features(self, x: Tensor) -> Tensor:
        """The residual stream after the embedding and after each block, averaged over the tokens.

        (B, T) to (n_layer + 1, B, C).
        """
        h = self.embed(x, NO_CACHE.positions(x.size(1)))
        means = [h.mean(dim=1)]
        for block in self.h:
            h = block(h, NO_CACHE)
            means.append(h.mean(dim=1))
        return torch.stack(means)

    def token_losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy in nats of every single target, (B, T); 0 where it is masked."""
        logits = self.logits(x).transpose(1, 2)
        return F.cross_entropy(logits, y, ignore_index=-100, reduction="none")

    def weights(self) -> dict[str, Tensor]:
        """All parameters by name; a tied head appears once, as the embedding."""
        return dict(self.named_parameters())

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `weights` gave.

        Raises:
            CheckpointError: names or shapes are not this model's.
        """
        own = self.weights()
        wrong = sorted(
            name
            for name in own.keys() | tensors.keys()
            if name not in own or name not in tensors or own[name].shape != tensors[name].shape
        )
        if wrong:
            raise CheckpointError(f"weights do not fit the model: {', '.join(wrong[:5])}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])

    def n_parameters(self) -> int:
        """Number of parameters, a tied head counted once."""
        return sum(p.numel() for p in self.parameters())

    def _run(self, block: nn.Module, h: Tensor, context: Context) -> Tensor:
        if not (self.recompute and torch.is_grad_enabled()):
            return block(h, context)
        keeps_state = self.config.dropout > 0
        return checkpoint(block, h, context, use_reentrant=False, preserve_rng_state=keeps_state)

    def _init(self, module: nn.Module) -> None:
        """GPT-2's: normal with std 0.02; what feeds the residual stream divided by its length."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Attention | MLP):
            nn.init.normal_(module.proj.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))
