"""The torch decoder: a GPT and its KV cache, seen as tokens in and logits out."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from gptkit.model.blocks import KVCache, StaticKVCache
from gptkit.model.gpt import GPT


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


class GraphDecoder(TorchDecoder):
    """The same on an NVIDIA GPU, where single tokens replay one recorded CUDA graph.

    Launching a step's kernels one by one takes longer than running them.

    Args:
        model: on a GPU, in evaluation mode.
        batch_size: sequences that are decoded together.
    """

    def __init__(self, model: GPT, batch_size: int) -> None:
        super().__init__(model, batch_size)
        device = model.wte.weight.device
        self._token = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._fixed = StaticKVCache(self._cache, self._position)
        self._graph: torch.cuda.CUDAGraph | None = None

    @torch.inference_mode()
    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Feed tokens (B, T) that follow the earlier ones; logits of the next, (B, vocab)."""
        if tokens.shape[1] > 1:
            return super().step(tokens)
        self._token.copy_(torch.from_numpy(tokens))
        self._position.fill_(self._cache.length)
        if self._graph is None:
            self._record()
        assert self._graph is not None
        self._graph.replay()
        self._cache.advance(1)
        logits: NDArray[np.float32] = self._logits.cpu().numpy()
        return logits

    def _record(self) -> None:
        """Run a step to warm up, on a stream of its own, then record one."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.fixed_step()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self.fixed_step()

    def fixed_step(self) -> torch.Tensor:
        """What is recorded: the token at the position to float32 logits (B, vocab)."""
        return self.model.next_logits(self._token, self._fixed).float()


def make_decoder(model: GPT, batch_size: int) -> TorchDecoder:
    """The decoder that is fastest where the model is."""
    if model.wte.weight.device.type == "cuda":
        return GraphDecoder(model, batch_size)
    return TorchDecoder(model, batch_size)


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
