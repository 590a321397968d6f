"""A graph `generate` in onnxruntime: one run draws everything, or several longer and longer ones.

Imports no torch.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gptkit.errors import UsageError
from gptkit.onnx.runtime import metadata
from gptkit.onnx.runtime.interface import FLOAT, INT64, check_drawn, check_ports
from gptkit.onnx.runtime.providers import open_session, running
from gptkit.sampling.generate import restart_length
from gptkit.sampling.rule import GOLDEN, Ints, SamplingOptions
from gptkit.sampling.stops import Stops

INPUTS = {
    "prompt_ids": (INT64, 2),
    "max_new_tokens": (INT64, 0),
    "temperature": (FLOAT, 0),
    "top_k": (INT64, 0),
    "top_p": (FLOAT, 0),
    "seed": (INT64, 0),
}
STOPS, OLD_STOPS = {"stop_tokens": (INT64, 1)}, {"stop_token": (INT64, 0)}
"""A further input, now and in format 1, that of gptkit 0.1 and 0.2."""
OUTPUTS = {"tokens": (INT64, 2)}
FIRST_RUN, GROWTH = 16, 2
"""Tokens of the first of several runs, and how many times as many the next run draws."""


class GenerateSession:
    """Draws tokens with a graph `generate`.

    Args:
        path: of the file.
        device: "cpu", "cuda", "cuda:N" or "auto".

    Raises:
        ModelFileError: the file has no metadata of gptkit's, or its graph is another one.
        UsageError: the device is not available, or the graph does not draw by itself.
    """

    def __init__(self, path: Path, device: str) -> None:
        self.path, self.session = path, open_session(path, device)
        self.metadata = metadata.of_session(self.session, path)
        if self.metadata.graph != "generate":
            raise UsageError(
                f"{path}: the graph {self.metadata.graph} cannot be sampled by itself",
                hint="name generate.onnx beside it, or the folder",
            )
        stops = OLD_STOPS if self.metadata.format == 1 else STOPS
        check_ports(self.session, path, INPUTS | stops, OUTPUTS)

    def first_chunk(self, *, streaming: bool, stops: Stops) -> int:
        """Tokens of the first run: few if samples are shown or searched as they are drawn.

        A run that ends within a context makes the next one read it again, which rounds differently
        from feeding it token by token: only in float32 are the tokens still the same.
        """
        early = (streaming or stops.texts) and self.metadata.dtype == "float32"
        return FIRST_RUN if early else self.metadata.block_size

    def stream(
        self,
        prompts: Ints,
        count: int,
        sampling: SamplingOptions,
        *,
        chunk: int,
        stop_tokens: Sequence[int] = (),
    ) -> Iterator[Ints]:
        """Draw tokens by the rule of `gptkit.sampling.generate`.

        A run ends at the latest where the context is full, and the graph would empty its cache.

        Args:
            prompts: token ids, int64 (B, T).
            count: tokens to draw.
            sampling: temperature, top-k, top-p and seed.
            chunk: tokens of the first run; later runs are longer.
            stop_tokens: drawing ends when every row has drawn one of these.

        Yields:
            The next tokens, int64 (B, n); after its first stop token a row means nothing.
        """
        context = prompts[:, -self.metadata.block_size :]
        drawn, size, ended = 0, chunk, np.zeros(len(prompts), np.bool_)
        while drawn < count and not ended.all():
            room = self.metadata.block_size + 1 - context.shape[1]
            most = min(size, room, count - drawn)
            new = self.generate(context, most, sampling, draw=drawn, stop_tokens=stop_tokens)
            yield new
            ended |= np.isin(new, stop_tokens).any(axis=1)
            context = next_context(context, new, self.metadata.block_size)
            drawn, size = drawn + new.shape[1], size * GROWTH

    def generate(
        self,
        prompt: Ints,
        count: int,
        sampling: SamplingOptions,
        *,
        draw: int = 0,
        stop_tokens: Sequence[int] = (),
    ) -> Ints:
        """One run of the graph.

        Args:
            prompt: token ids, int64 (B, T).
            count: tokens to draw.
            sampling: temperature, top-k, top-p and seed.
            draw: number of the first draw; random numbers continue from there.
            stop_tokens: a row that drew one repeats it until all rows have drawn one. A file of
                gptkit 0.1 or 0.2 can be given one; given more, it draws on.

        Returns:
            int64 (B, at most count).
        """
        inputs = feeds(prompt, count, sampling, draw=draw, stop_tokens=stop_tokens)
        if self.metadata.format == 1:
            stops = inputs.pop("stop_tokens")
            inputs["stop_token"] = np.array(stops[0] if len(stops) == 1 else -1, np.int64)
        with running(self.path):
            tokens = self._run(inputs)
        check_drawn(tokens, len(prompt), count, self.metadata.vocab_size, self.path)
        return tokens

    def _run(self, inputs: dict[str, NDArray[Any]]) -> Ints:
        """Run in another thread, so that Ctrl-C reaches this one, which then ends the run."""
        binding = self.session.io_binding()
        for name, value in inputs.items():
            binding.bind_cpu_input(name, value)
        binding.bind_output("tokens")
        options = ort.RunOptions()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self.session.run_with_iobinding, binding, options)
            try:
                future.result()
            except BaseException:
                options.terminate = True
                raise
        tokens: Ints = binding.copy_outputs_to_cpu()[0]
        return tokens


def feeds(
    prompt: Ints,
    count: int,
    sampling: SamplingOptions,
    *,
    draw: int = 0,
    stop_tokens: Sequence[int] = (),
) -> dict[str, NDArray[Any]]:
    """The inputs of a graph `generate`; see `GenerateSession.generate`."""
    seed = (sampling.seed + draw * len(prompt) * GOLDEN) % 2**64
    return {
        "prompt_ids": prompt,
        "max_new_tokens": np.array(count, np.int64),
        "temperature": np.array(sampling.temperature, np.float32),
        "top_k": np.array(sampling.top_k, np.int64),
        "top_p": np.array(sampling.top_p, np.float32),
        "seed": np.array(seed, np.uint64).view(np.int64),
        "stop_tokens": np.array(stop_tokens, np.int64),
    }


def next_context(context: Ints, new: Ints, block_size: int) -> Ints:
    """The tokens that the model sees next, by the rule of `gptkit.sampling.generate`.

    Args:
        context: int64 (B, T), at most block_size tokens.
        new: int64 (B, n), drawn after them.
        block_size: a context of this length is full, and restarts from its last part.
    """
    length = context.shape[1]
    for _ in range(new.shape[1]):
        length = restart_length(block_size) if length == block_size else length + 1
    return np.concatenate([context, new], axis=1)[:, -length:]
