"""Exported models at work: a file or a kit is opened, checked and sampled. No torch.

A single file holds the graph `generate`: one run draws everything. A kit also has `model.onnx` and
`decode.onnx`, which draw token by token without copying the cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort

from gptkit.codec import Codec
from gptkit.errors import ModelFileError, UsageError
from gptkit.onnx.runtime import metadata
from gptkit.onnx.runtime.decode_session import DECODE_FILE, STEP_FILE, DecodeSession
from gptkit.onnx.runtime.generate_session import GenerateSession
from gptkit.onnx.runtime.metadata import Metadata
from gptkit.onnx.runtime.providers import provider
from gptkit.recipe import registry
from gptkit.sampling.rule import Ints, SamplingOptions
from gptkit.sampling.samples import SampleRequest, Samples

GENERATE_FILE, SELFTEST_FILE = "generate.onnx", "selftest.json"
"""The files of a kit that can be sampled on its own, and that says what it should draw."""


class SampleSession(Protocol):
    """What draws tokens: `GenerateSession` or `DecodeSession`."""

    @property
    def session(self) -> ort.InferenceSession:
        """The graph that draws."""

    @property
    def burst(self) -> int | None:
        """Tokens between two looks, where somebody watches; None for all."""

    def stream(
        self, prompts: Ints, count: int, sampling: SamplingOptions, *, burst: int
    ) -> Iterator[Ints]:
        """Draw tokens after prompts (B, T) in parts, int64 (B, n)."""


def load_exported(path: Path, *, device: str = "auto") -> "OnnxModel":
    """Load an exported model: a single file, or a kit.

    Raises:
        ModelFileError: it is missing, damaged, from another program or of a newer gptkit.
        UsageError: the device is not there.
    """
    if path.is_dir():
        return _open_kit(path, device)
    if not path.is_file():
        raise _missing(path)
    metadata.check_files(path)
    drawer = GenerateSession(path, device)
    if drawer.metadata.graph != "generate":
        raise UsageError(
            f"{path}: holds the graph {drawer.metadata.graph}, which does not draw by itself",
            hint=f"name {GENERATE_FILE} beside it, or the folder",
        )
    return OnnxModel(path, drawer.metadata, drawer)


def _open_kit(folder: Path, device: str) -> "OnnxModel":
    if not (folder / GENERATE_FILE).is_file():
        raise _missing(folder / GENERATE_FILE)
    metadata.check_files(folder / GENERATE_FILE, folder / STEP_FILE, folder / DECODE_FILE)
    drawer = DecodeSession(folder, device)
    reads = metadata.of(drawer.reader, folder / STEP_FILE)
    draws = metadata.of(drawer.session, folder / DECODE_FILE)
    if (reads.graph, draws.graph) != ("step", "decode"):
        raise ModelFileError(
            f"{folder}: {STEP_FILE} holds the graph {reads.graph} and {DECODE_FILE} {draws.graph}, "
            "instead of step and decode",
            hint=metadata.AGAIN,
        )
    return OnnxModel(folder, draws, drawer)


def _missing(path: Path) -> UsageError:
    return UsageError(f"{path}: no such file", hint="gptkit export --onnx writes one")


@dataclass(frozen=True)
class OnnxModel:
    """An exported model that was opened."""

    path: Path
    metadata: Metadata
    drawer: SampleSession

    @cached_property
    def codec(self) -> Codec:
        """What reads prompts and writes samples.

        Raises:
            PluginError: its distribution is not installed.
        """
        return registry.make_codec(self.metadata.codec)

    @property
    def temperature(self) -> float:
        """Of samples, where nobody asks for one."""
        return self.metadata.tokens.temperature

    @property
    def provider(self) -> str:
        """What onnxruntime runs it on."""
        return provider(self.drawer.session)

    def sample(
        self, request: SampleRequest, sampling: SamplingOptions, *, streaming: bool = False
    ) -> Samples:
        """Start drawing samples; needs the codec only for prompts and classes.

        Args:
            request: which samples.
            sampling: the rule's settings.
            streaming: show the first tokens as soon as they are there.

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
        burst = (self.drawer.burst if streaming else None) or count
        prompts = np.array(starts, dtype=np.int64)
        parts = self.drawer.stream(prompts, count, sampling, burst=burst)
        tokens = (row for part in parts for row in part.T.tolist())
        return Samples(request.prompt, starts, tokens)
