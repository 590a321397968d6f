"""The torch decoder: a GPT with its KV cache, from tokens to logits."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from gptkit.model.cache import KVCache, StaticKVCache
from gptkit.model.gpt import GPT, is_sharded
from gptkit.sampling.threads import for_drawing


class TorchDecoder:
    """Feeds tokens to a GPT through its KV cache.

    Args:
        model: on its device; the caller sets evaluation mode.
        batch_size: sequences that are decoded together.
    """

    def __init__(self, model: GPT, batch_size: int) -> None:
        self.model = model
        self.block_size = model.config.block_size
        weight = model.wte.weight
        like = torch.empty(0, dtype=weight.dtype, device=weight.device)
        self._cache = KVCache(model.config, batch_size, like=like)
        # FSDP2 reuses gathered weights in training, so they must not be inference tensors.
        self._mode = torch.no_grad if is_sharded(weight) else torch.inference_mode
        size = sum(tensor.nbytes for tensor in model.parameters())
        self._count = for_drawing(size) if weight.device.type == "cpu" else None

    @property
    def length(self) -> int:
        """Tokens in the cache, at most block_size."""
        return self._cache.length

    def prefill(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Empty the cache, then feed tokens (B, T); logits of the next, float32 (B, vocab_size)."""
        self._cache.reset()
        return self.step(tokens)

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Feed tokens (B, T) that follow the earlier ones; logits of the next, (B, vocab_size)."""
        x = torch.from_numpy(tokens).to(self.model.wte.weight.device)
        with self._mode(), self._threads():
            logits: NDArray[np.float32] = (
                self.model.next_logits(x, self._cache).float().cpu().numpy()
            )
        return logits

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """Leave torch's threads as they were afterwards; to set them costs nothing."""
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(min(self._count or before, before))
            yield
        finally:
            torch.set_num_threads(before)


class GraphDecoder(TorchDecoder):
    """A `TorchDecoder` on an NVIDIA GPU that replays one recorded CUDA graph for every token.

    Launching the kernels of a step one by one takes longer than running them.

    Args:
        model: on a GPU, in evaluation mode.
        batch_size: sequences that are decoded together.
    """

    def __init__(self, model: GPT, batch_size: int) -> None:
        super().__init__(model, batch_size)
        device = model.wte.weight.device
        self._token = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._static_cache = StaticKVCache(self._cache, self._position)
        self._graph: torch.cuda.CUDAGraph | None = None

    @torch.inference_mode()
    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Feed tokens (B, T) that follow the earlier ones; logits of the next, (B, vocab_size)."""
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
        """Warm up on a side stream, then record a step."""
        with torch.cuda.device(self._token.device):  # streams belong to the current device
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._static_step()
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._logits = self._static_step()

    def _static_step(self) -> torch.Tensor:
        """The recorded step: the token at the position to float32 logits (B, vocab_size)."""
        return self.model.next_logits(self._token, self._static_cache).float()


def make_decoder(model: GPT, batch_size: int) -> TorchDecoder:
    """The fastest decoder for the device that the model is on."""
    if model.wte.weight.device.type == "cuda":
        return GraphDecoder(model, batch_size)
    return TorchDecoder(model, batch_size)
