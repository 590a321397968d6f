"""The torch decoder: a GPT and its KV cache, seen as tokens in and logits out."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from gptkit.blocks import KVCache
from gptkit.model import GPT


class TorchDecoder:
    """Feeds tokens to a GPT through its KV cache.

    Args:
        model: in the mode and on the device in which it should run.
        batch_size: sequences that are decoded together.
    """

    def __init__(self, model: GPT, batch_size: int) -> None:
        self.model = model
        self.block_size = model.config.block_size
        weight = model.wte.weight
        like = torch.empty(0, dtype=weight.dtype, device=weight.device)
        self._cache = KVCache(model.config, batch_size, like=like)
        # FSDP2 keeps for training what it gathers, and training can use no inference tensors.
        sharded = hasattr(weight, "full_tensor")
        self._mode = torch.no_grad if sharded else torch.inference_mode

    @property
    def length(self) -> int:
        """Tokens in the cache, at most block_size."""
        return self._cache.length

    def prefill(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Forget everything, then feed tokens (B, T); logits of the next, float32 (B, vocab)."""
        self._cache.reset()
        return self.step(tokens)

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Feed tokens (B, T) that follow the earlier ones; logits of the next, (B, vocab)."""
        x = torch.from_numpy(tokens).to(self.model.wte.weight.device)
        with self._mode():
            logits: NDArray[np.float32] = (
                self.model.next_logits(x, self._cache).float().cpu().numpy()
            )
        return logits


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients; the mode that the model was in comes back."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
