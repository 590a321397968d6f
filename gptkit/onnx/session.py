"""Exported models at work: a file or a kit is opened, checked and sampled. No torch.

A single file holds the graph `generate`: one run draws everything. A kit also has `model.onnx` and
`decode.onnx`, which draw token by token without copying the cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gptkit import registry
from gptkit.codec import Codec
from gptkit.drawing import Drawing, Request
from gptkit.errors import UsageError
from gptkit.onnx import metadata
from gptkit.onnx.decoding import DRAWER, READER, DecodeSession
from gptkit.onnx.metadata import Metadata
from gptkit.onnx.providers import open_session, provider
from gptkit.sampler import Ints, Sampling

GENERATE, SELFTEST = "generate.onnx", "selftest.json"
"""The files of a kit that can be sampled on its own, and that says what it should draw."""
FIRST_RUN, GROWTH = 16, 2
"""Tokens of the first run where somebody watches, and how much longer the next ones are."""
GOLDEN = 0x9E3779B97F4A7C15
"""By what the sampling rule's counter moves the seed, per number."""


def open_model(path: Path, *, device: str = "auto") -> "OnnxModel":
    """Load an exported model: a single file, or a kit.

    Raises:
        ModelFileError: it is missing, damaged, from another program or of a newer gptkit.
        UsageError: the device is not there.
    """
    is_kit = path.is_dir()
    file = path / GENERATE if is_kit else path
    if not file.is_file():
        raise UsageError(f"{file}: no such file", hint="gptkit export --onnx writes one")
    metadata.check_file(file)
    session = open_session(file, device)
    described = metadata.read(session.get_modelmeta().custom_metadata_map, file)
    if described.graph != "generate":
        raise UsageError(
            f"{file}: holds the graph {described.graph}, which does not draw by itself",
            hint=f"name {GENERATE} beside it, or the folder",
        )
    if not is_kit:
        return OnnxModel(file, session, described)
    for name in (READER, DRAWER):
        metadata.check_file(path / name)
    return OnnxModel(file, session, described, DecodeSession(path, device))


@dataclass(frozen=True)
class OnnxModel:
    """An exported model that was opened."""

    path: Path
    session: ort.InferenceSession
    metadata: Metadata
    steps: DecodeSession | None = None
    """A kit's graphs, which draw token by token."""

    @cached_property
    def codec(self) -> Codec:
        """What reads prompts and writes samples.

        Raises:
            PluginError: its distribution is not installed.
        """
        record = self.metadata.codec
        return registry.make_codec(record.name, record.distribution, record.options)

    @property
    def temperature(self) -> float:
        """Of samples, where nobody asks for one."""
        return self.metadata.tokens.temperature

    @property
    def provider(self) -> str:
        """What onnxruntime runs it on."""
        return provider(self.session)

    def draw(self, request: Request, sampling: Sampling, *, watched: bool = False) -> Drawing:
        """Start drawing samples; needs the codec only for prompts and classes.

        Args:
            request: which samples.
            sampling: the rule's settings.
            watched: draw in several runs that grow, so that the first tokens show at once;
                otherwise one run draws everything. Each run reads its context anew, which rounds
                otherwise than feeding it token by token did: only float32 stands that.

        Raises:
            PromptError: the codec cannot read the prompt, or nothing is left to draw.
        """
        asked = request.prompt or request.label is not None or request.keep != 1
        known = self.metadata.tokens
        if asked:
            starts = request.starts(self.codec)
        else:
            starts = [known.starts[i % len(known.starts)] for i in range(request.samples)]
        count = request.count(starts[0], known.length)
        prompts = np.array(starts, dtype=np.int64)
        if self.steps:
            parts = self.steps.stream(prompts, count, sampling, burst=1 if watched else count)
        else:
            in_parts = watched and self.metadata.dtype == "float32"
            parts = self._runs(prompts, count, sampling, FIRST_RUN if in_parts else count)
        tokens = (row for part in parts for row in part.T.tolist())
        return Drawing(request.prompt, starts, tokens)

    def generate(
        self, prompt: Ints, count: int, sampling: Sampling, *, draw: int = 0, stop_token: int = -1
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
        self.session.run_with_iobinding(binding)
        tokens: Ints = binding.copy_outputs_to_cpu()[0]
        return tokens

    def _runs(self, prompts: Ints, count: int, sampling: Sampling, first: int) -> Iterator[Ints]:
        """Draw in runs, the first of so many tokens, each after it longer; int64 (B, n)."""
        context = prompts[:, -self.metadata.block_size :]
        drawn, size = 0, first
        while drawn < count:
            new = self.generate(context, min(size, count - drawn), sampling, draw=drawn)
            yield new
            context = next_context(context, new, self.metadata.block_size)
            drawn, size = drawn + new.shape[1], size * GROWTH


def feeds(
    prompt: Ints, count: int, sampling: Sampling, *, draw: int = 0, stop_token: int = -1
) -> dict[str, NDArray[Any]]:
    """The inputs of a `generate` graph; see `OnnxModel.generate`."""
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
    """What the model has before it after drawing: the rule of `gptkit.generate`.

    Args:
        context: int64 (B, T), at most block_size tokens.
        new: int64 (B, n), drawn after them.
        block_size: at this length sampling starts anew from the last half.
    """
    length = context.shape[1]
    for _ in range(new.shape[1]):
        length = max(1, block_size // 2) if length == block_size else length + 1
    return np.concatenate([context, new], axis=1)[:, -length:]
