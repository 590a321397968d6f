"""A `generate` graph at work: one run draws everything, or several runs do that grow. No torch."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gptkit.onnx.runtime import metadata
from gptkit.onnx.runtime.providers import open_session
from gptkit.sampling.rule import Ints, SamplingOptions

GROWTH = 2
"""How much longer each run is than the one before it, where somebody watches."""
GOLDEN = 0x9E3779B97F4A7C15
"""By what the sampling rule's counter moves the seed, per number."""


class GenerateSession:
    """Draws from a `generate` graph.

    Args:
        path: of the file, which says of itself what it is.
        device: "cpu", "cuda", "cuda:N" or "auto".

    Raises:
        ModelFileError: it does not say what it is.
        UsageError: the device is not there.
    """

    def __init__(self, path: Path, device: str) -> None:
        self.session = open_session(path, device)
        self.metadata = metadata.of(self.session, path)

    @property
    def burst(self) -> int | None:
        """Tokens of the first run where somebody watches; None for all.

        Each run reads its context anew, which rounds otherwise than feeding it token by token did:
        only float32 stands that.
        """
        return 16 if self.metadata.dtype == "float32" else None

    def stream(
        self, prompts: Ints, count: int, sampling: SamplingOptions, *, burst: int
    ) -> Iterator[Ints]:
        """Draw tokens; the rule is that of `gptkit.sampling.generate`.

        Args:
            prompts: token ids, int64 (B, T), all of one length.
            count: tokens to draw.
            sampling: the rule's settings.
            burst: tokens of the first run; each after it is longer.

        Yields:
            The next tokens, int64 (B, n).
        """
        context = prompts[:, -self.metadata.block_size :]
        drawn, size = 0, burst
        while drawn < count:
            new = self.generate(context, min(size, count - drawn), sampling, draw=drawn)
            yield new
            context = next_context(context, new, self.metadata.block_size)
            drawn, size = drawn + new.shape[1], size * GROWTH

    def generate(
        self,
        prompt: Ints,
        count: int,
        sampling: SamplingOptions,
        *,
        draw: int = 0,
        stop_token: int = -1,
    ) -> Ints:
        """One run of the graph.

        Args:
            prompt: token ids, int64 (B, T).
            count: tokens to draw.
            sampling: the rule's settings.
            draw: the number of the first draw; random numbers go on from there.
            stop_token: ends a row; -1 for none.

        Returns:
            int64 (B, at most count).
        """
        binding = self.session.io_binding()
        inputs = feeds(prompt, count, sampling, draw=draw, stop_token=stop_token)
        for name, value in inputs.items():
            binding.bind_cpu_input(name, value)
        binding.bind_output("tokens")
        self._run(binding)
        tokens: Ints = binding.copy_outputs_to_cpu()[0]
        return tokens

    def _run(self, binding: ort.IOBinding) -> None:
        """Run on a thread of its own, so that Ctrl-C reaches this one and ends the run."""
        options = ort.RunOptions()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self.session.run_with_iobinding, binding, options)
            try:
                running.result()
            except BaseException:
                options.terminate = True
                raise


def feeds(
    prompt: Ints, count: int, sampling: SamplingOptions, *, draw: int = 0, stop_token: int = -1
) -> dict[str, NDArray[Any]]:
    """The inputs of a `generate` graph; see `GenerateSession.generate`."""
    seed = (sampling.seed + draw * len(prompt) * GOLDEN) % 2**64
    return {
        "prompt_ids": prompt,
        "max_new_tokens": np.array(count, np.int64),
        "temperature": np.array(sampling.temperature, np.float32),
        "top_k": np.array(sampling.top_k, np.int64),
        "top_p": np.array(sampling.top_p, np.float32),
        "seed": np.array(seed, np.uint64).view(np.int64),
        "stop_token": np.array(stop_token, np.int64),
    }


def next_context(context: Ints, new: Ints, block_size: int) -> Ints:
    """What the model has before it after drawing: the rule of `gptkit.sampling.generate`.

    Args:
        context: int64 (B, T), at most block_size tokens.
        new: int64 (B, n), drawn after them.
        block_size: at this length sampling starts anew from the last half.
    """
    length = context.shape[1]
    for _ in range(new.shape[1]):
        length = max(1, block_size // 2) if length == block_size else length + 1
    return np.concatenate([context, new], axis=1)[:, -length:]
