"""GPT: token and position embedding, blocks, a head (Radford et al. 2019).

Shapes: B sequences, T tokens, C = n_embd.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptkit.data.split import IGNORE
from gptkit.errors import CheckpointError
from gptkit.model import initial
from gptkit.model.blocks import (
    NORMS,
    POSITIONS,
    Angles,
    Block,
    MakeLinear,
    SoftCap,
    embed_norm,
    plain_linear,
)
from gptkit.model.cache import NO_CACHE, Cache
from gptkit.model.documents import Documents
from gptkit.recipe.adapters import is_adapter
from gptkit.recipe.options import GPTConfig

BLOCKS = "h."
"""Prefix of the names of the blocks' parameters."""


class GPT(nn.Module):
    """A decoder-only transformer over token ids.

    Args:
        config: its shape.
        seed: of the weights that it begins with; None draws none, since they are loaded or shared
            out later, as on the meta device.
        recompute: in training, keep only each block's input; the backward pass recomputes the rest.
        linear: makes the linear layers of the blocks.
    """

    def __init__(
        self,
        config: GPTConfig,
        *,
        seed: int | None = 0,
        recompute: bool = False,
        linear: MakeLinear = plain_linear,
    ) -> None:
        super().__init__()
        self.config, self.recompute = config, recompute
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.position = POSITIONS[config.position](config)
        self.embed_norm = embed_norm(config)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, i, linear) for i in range(config.n_layer))
        self.ln_f = NORMS[config.norm](config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.cap = SoftCap(config.logit_softcap) if config.logit_softcap else nn.Identity()
        self.tie()
        self._drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in self.modules())
        if seed is not None:
            self._draw(seed)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        document_start: int | None = None,
        document_end: int | None = None,
    ) -> Tensor:
        """Mean cross-entropy in nats of targets y given inputs x, both int64 (B, T).

        With `document_start`, the token that begins a document, or `document_end`, the one that
        ends it, the tokens of a document see no other one, and their positions count from its
        beginning: as if each were alone.
        """
        cache: Cache = NO_CACHE
        if document_start is not None or document_end is not None:
            dtype, windows = self._compute_dtype(x.device.type), self.config.windows
            cache = Documents(x, document_start, end=document_end, dtype=dtype, windows=windows)
        logits = self.logits(x, cache)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORE)

    def logits(self, x: Tensor, cache: Cache = NO_CACHE) -> Tensor:
        """Unnormalised log-probabilities of the next token, (B, T) to (B, T, vocab_size).

        With a `KVCache`, x holds only the tokens that follow those of earlier calls.
        """
        return self.cap(self.lm_head(self.features(x, cache)))

    def next_logits(self, x: Tensor, cache: Cache) -> Tensor:
        """Logits of only the next token, (B, T) to (B, vocab_size)."""
        return self.cap(self.lm_head(self.features(x, cache)[:, -1]))

    def features(self, x: Tensor, cache: Cache = NO_CACHE) -> Tensor:
        """The residual stream after the last norm, (B, T) to (B, T, C)."""
        positions = cache.positions(x.size(1))
        h, angles = self.embed(x, positions), self.position.angles(positions)
        for block in self.h:
            h = self._run(block, h, cache, angles)
        cache.advance(x.size(1))
        return self.ln_f(h)

    def embed(self, x: Tensor, positions: slice | Tensor) -> Tensor:
        """The residual stream before the first block, (B, T) to (B, T, C)."""
        return self.drop(self.embed_norm(self.position.embed(self.wte(x), positions)))

    def layer_features(self, x: Tensor) -> Tensor:
        """The residual stream after the embedding and after each block, averaged over the tokens.

        (B, T) to (n_layer + 1, B, C).
        """
        positions = NO_CACHE.positions(x.size(1))
        h, angles = self.embed(x, positions), self.position.angles(positions)
        means = [h.mean(dim=1)]
        for block in self.h:
            h = block(h, NO_CACHE, angles)
            means.append(h.mean(dim=1))
        return torch.stack(means)

    def token_losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy in nats of each target, (B, T); 0 if it is masked."""
        logits = self.logits(x).transpose(1, 2)
        return F.cross_entropy(logits, y, ignore_index=IGNORE, reduction="none")

    def tie(self) -> None:
        """Make the head's weights those of the embedding, if the config says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.wte.weight

    def weights(self) -> dict[str, Tensor]:
        """All parameters by name; a tied head appears once, as the embedding."""
        return dict(self.named_parameters())

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors, named as in `weights`, into the parameters; without adapters these stay.

        Raises:
            CheckpointError: names or shapes differ from this model's.
        """
        own = self.weights()
        wrong = sorted(
            name
            for name in own.keys() | tensors.keys()
            if name not in own
            or (name not in tensors and not is_adapter(name))
            or (name in tensors and own[name].shape != tensors[name].shape)
        )
        if wrong:
            raise CheckpointError(f"weights do not fit the model: {', '.join(wrong[:5])}")
        with torch.no_grad():
            for name, parameter in own.items():
                if name in tensors:
                    parameter.copy_(tensors[name])

    def n_parameters(self) -> int:
        """Number of parameters, a tied head counted once."""
        return sum(p.numel() for p in self.parameters())

    def _run(self, block: nn.Module, h: Tensor, cache: Cache, angles: Angles | None) -> Tensor:
        if not (self.recompute and torch.is_grad_enabled()):
            return block(h, cache, angles)
        return checkpoint(
            block, h, cache, angles, use_reentrant=False, preserve_rng_state=self._drops
        )

    def _compute_dtype(self, device: str) -> torch.dtype:
        """That of the matrix products: autocast's, or that of the weights."""
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.wte.weight.dtype

    @torch.no_grad()
    def _draw(self, seed: int) -> None:
        depth = self.config.n_layer
        for name, weight in self.named_parameters():
            weight.copy_(initial.rows(name, weight.shape, n_layer=depth, seed=seed))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; restores the previous mode at the end."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, as under FSDP2; importing that type takes a second."""
    return hasattr(tensor, "full_tensor")
