"""OnnxModel: an exported file or bundle, loaded, checked and sampled. Imports no torch.

A single file holds the graph `generate`, which draws everything in one run. A bundle also has
`model.onnx` and `decode.onnx`, which draw token by token without copying the cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort

from gptkit import memory
from gptkit.codec import Codec
from gptkit.contract.codec_check import check_loaded
from gptkit.errors import ModelFileError, UsageError
from gptkit.files import check_name
from gptkit.memory import Need
from gptkit.onnx.runtime import metadata
from gptkit.onnx.runtime.decode_session import DECODE_FILE, STEP_FILE, DecodeSession
from gptkit.onnx.runtime.generate_session import GenerateSession
from gptkit.onnx.runtime.metadata import Metadata
from gptkit.onnx.runtime.providers import AGAIN, provider
from gptkit.onnx.runtime.text_session import TextSession
from gptkit.recipe import codec_record, sizes
from gptkit.sampling.model import Model
from gptkit.sampling.rule import Floats, Ints, SamplingOptions
from gptkit.sampling.samples import SampleRequest, Samples
from gptkit.sampling.stops import Stops

GENERATE_FILE, SELFTEST_FILE = "generate.onnx", "selftest.json"
"""Files of a bundle: the graph `generate`, and inputs of it with the tokens that it should draw."""


class SampleSession(Protocol):
    """What draws tokens: `GenerateSession` or `DecodeSession`."""

    @property
    def session(self) -> ort.InferenceSession:
        """The graph that draws."""

    def first_chunk(self, *, streaming: bool, stops: Stops) -> int:
        """The `chunk` for samples, which may be shown as they are drawn, or end at stops."""

    def stream(
        self,
        prompts: Ints,
        count: int,
        sampling: SamplingOptions,
        *,
        chunk: int,
        stop_tokens: Sequence[int] = (),
    ) -> Iterator[Ints]:
        """Draw tokens after prompts (B, T) in parts, int64 (B, n), the first of size `chunk`.

        Ends when every row has drawn a stop token; after it a row means nothing.
        """


def load_exported(path: Path, *, device: str = "auto") -> "OnnxModel":
    """Load an exported model: a single file or a bundle.

    Raises:
        ModelFileError: it is damaged, from another program or from a newer gptkit.
        UsageError: it does not exist, or the device is not available.
    """
    check_name(path)
    if path.is_dir():
        return _load_bundle(path, device)
    if not path.exists():
        raise _missing(path)
    metadata.check_files(path)
    session = GenerateSession(path, device)
    return OnnxModel(path, session.metadata, session, device)


def _load_bundle(folder: Path, device: str) -> "OnnxModel":
    if not (folder / GENERATE_FILE).exists():
        raise _missing(folder / GENERATE_FILE)
    metadata.check_files(folder / GENERATE_FILE, folder / STEP_FILE, folder / DECODE_FILE)
    session = DecodeSession(folder, device)
    return OnnxModel(folder, session.metadata, session, device)


def _missing(path: Path) -> UsageError:
    return UsageError(f"{path}: no such file", hint="gptkit export writes one")


@dataclass(frozen=True)
class OnnxModel(Model):
    """An exported model, loaded."""

    path: Path
    metadata: Metadata
    session: SampleSession
    device: str = "auto"
    """As it was asked for."""

    @cached_property
    def codec(self) -> Codec:
        """Turns prompts into tokens and tokens into samples.

        Raises:
            PluginError: its distribution is not installed.
            ModelFileError: it does not fit the model.
        """
        codec = codec_record.make_codec(self.metadata.codec)
        try:
            check_loaded(codec, self.metadata.vocab_size)
        except UsageError as error:
            raise ModelFileError(f"{self.path}: damaged: codec: {error}", hint=AGAIN) from None
        return codec

    @property
    def block_size(self) -> int:
        """Tokens of context."""
        return self.metadata.block_size

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.metadata.vocab_size

    @property
    def temperature(self) -> float:
        """The default temperature."""
        return self.metadata.tokens.temperature

    @property
    def provider(self) -> str:
        """The onnxruntime execution provider that runs it."""
        return provider(self.session.session)

    def draw(
        self, request: SampleRequest, sampling: SamplingOptions, *, streaming: bool = False
    ) -> Samples:
        """Start drawing samples; needs the codec only for prompts and classes.

        Args:
            request: which samples.
            sampling: temperature, top-k, top-p and seed.
            streaming: yield the first tokens as soon as possible.

        Raises:
            PromptError: the codec cannot read the prompt, or the prompt already fills the sample.
            RunError: so many samples need more memory than there is.
        """
        known, tokens = self.metadata.tokens, request.tokens or self.block_size
        need = sizes.to_sample(self.metadata.config, request.samples, tokens)
        need.check(memory.total())
        needs_codec = request.needs_codec
        starts = request.starts(self.codec) if needs_codec else request.in_turn(known.starts)
        if wrong := [id_ for id_ in starts[0] if not 0 <= id_ < self.metadata.vocab_size]:
            raise ModelFileError(
                f"{self.path}: damaged: its codec gives the token {wrong[0]}, and the model has "
                f"{self.metadata.vocab_size}",
                hint=AGAIN,
            )
        count = request.count(starts[0], known.length)
        stops = request.stops(known.stop_tokens, self.codec if request.stop else None)
        parts = self.session.stream(
            np.array(starts, dtype=np.int64),
            count,
            sampling,
            chunk=self.session.first_chunk(streaming=streaming, stops=stops),
            stop_tokens=stops.tokens,
        )
        return Samples.start(request.prompt, starts, stops, _rows(parts, need), count=count)

    @cached_property
    def text_session(self) -> TextSession:
        """For `logits` and `features`; opened when one of them is called first.

        Raises:
            ModelFileError: the graph is not built as this gptkit builds it.
        """
        path = self.path / GENERATE_FILE if self.path.is_dir() else self.path
        return TextSession(path, self.metadata, self.device)

    def logits(self, tokens: Ints) -> Floats:
        """Unnormalised log-probabilities of the token after each token, (T, vocab_size)."""
        return self.text_session.logits(tokens)

    def features(self, tokens: Ints) -> Floats:
        """The residual stream after the last norm, (T, n_embd)."""
        return self.text_session.features(tokens)


def _rows(parts: Iterator[Ints], need: Need) -> Iterator[list[int]]:
    """The next token of every sample, from parts (B, n)."""
    with need.explained():
        for part in parts:
            yield from part.T.tolist()
