"""Whether a GGUF file that was written is the model: read back by another reader, and computed.

The reader is that of the package gguf, the logits are those of numpy with transformers' formulas.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from numpy.typing import NDArray
from torch import Tensor, nn

from gptkit.codec import PromptError
from gptkit.plugin import ExportError
from gptkit_gguf.header import Header, TensorPlace
from gptkit_gguf.names import Place
from gptkit_gguf.reading import codec_of
from gptkit_gguf.tensors import HfTensors
from gptkit_gguf.vocabulary import read_vocabulary
from gptkit_gguf.writer import Dtype
from gptkit_text.codec import TokenizerCodec

STEPS: Mapping[Dtype, float] = {"f32": 0.0, "f16": 2.0**-11, "q8_0": 1 / 220}
"""The largest change of a weight, as a part of the tensor's largest: half of a step."""
TOLERANCES: Mapping[Dtype, float] = {"f32": 1e-4, "f16": 1e-2, "q8_0": 1e-1}
"""The largest difference of logits, as a part of the largest logit."""
GELU = 1e-2
"""The same where llama.cpp computes GELU by its approximation and the model does not."""
DRAWN, GREEDY = 24, 8
"""Tokens that are drawn at random, and those that the model itself continues them with."""
TEXTS = ("One, two  three\n\tfour 1234", "Zwölf", "A\u030a", "千🦊", "don't")


def read_back(path: Path) -> Header:
    """What the package gguf finds in a file.

    Raises:
        ExportError: it cannot read the file.
    """
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, KeyError, IndexError) as error:
        raise ExportError(f"{path.name}: the package gguf cannot read it: {error}") from error
    places = {
        tensor.name: TensorPlace(
            shape=tuple(int(size) for size in reversed(tensor.shape)),
            kind=tensor.tensor_type,
            start=int(tensor.data_offset),
            size=int(tensor.n_bytes),
        )
        for tensor in reader.tensors
    }
    return Header(path, fields, places)


def prove_tensors(
    header: Header, places: Mapping[str, Place], tensors: Mapping[str, Tensor], dtype: Dtype
) -> None:
    """Compare every tensor in a file with the model's.

    Raises:
        ExportError: one differs by more than its type does.
    """
    found = HfTensors(header, places)
    for name, place in places.items():
        wanted = tensors[name]
        if place.name not in header.tensors:
            raise ExportError(f"{header.path.name}: the tensor {place.name} is missing")
        largest = max(map(abs, map(float, torch.aminmax(wanted))))
        low, high = torch.aminmax(found[name].sub_(wanted))  # without a copy of a large tensor
        off = float(torch.maximum(high, -low))
        if not off <= STEPS[dtype] * largest:
            raise ExportError(
                f"{header.path.name}: the tensor {place.name} differs by {off:.2g}, "
                f"its largest value is {largest:.2g}"
            )


def proof_tokens(module: nn.Module, vocab_size: int, block_size: int) -> list[int]:
    """Tokens that fit the context: random ones, then what the model continues them with."""
    drawn = max(1, min(DRAWN, block_size - GREEDY))
    ids: list[int] = np.random.default_rng(0).integers(0, vocab_size, drawn).tolist()
    while len(ids) < min(drawn + GREEDY, block_size):
        ids.append(int(model_logits(module, ids)[-1].argmax()))
    return ids


def model_logits(module: nn.Module, ids: Sequence[int]) -> NDArray[np.float32]:
    """The model's logits, (T, vocab_size), of token ids (T,)."""
    compute: Callable[[Tensor], Tensor] = module.logits  # type: ignore[assignment]
    with torch.inference_mode():
        found: NDArray[np.float32] = compute(torch.tensor([ids]))[0].numpy()
    return found


def prove_tokenizer(header: Header, codec: TokenizerCodec, vocab_size: int) -> None:
    """Compare the tokens of some texts, and those that begin and end them.

    Raises:
        ExportError: the tokenizer of the file gives others.
    """
    name = header.path.name
    again = codec_of(header.path, read_vocabulary(header), vocab_size)
    for text in TEXTS:
        try:
            wanted = codec.divide(text)
        except PromptError:
            continue
        if again.divide(text) != wanted:
            raise ExportError(f"{name}: its tokenizer gives other tokens for {text!r}")
    if not set(codec.stop_tokens) <= set(again.stop_tokens):
        raise ExportError(f"{name}: other tokens end a text")
    if codec.end is not None and codec.encode("a") != again.encode("a"):
        raise ExportError(f"{name}: its tokenizer begins a text with other tokens")
