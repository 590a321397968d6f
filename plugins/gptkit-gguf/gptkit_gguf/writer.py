"""Writing a GGUF file tensor by tensor."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import quantize
from numpy.typing import NDArray
from torch import Tensor

from gptkit_gguf import rope
from gptkit_gguf.names import Place
from gptkit_gguf.spelling import Spelling

Dtype = Literal["f32", "f16", "q8_0"]
KINDS = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
SINGLE = ("position_embd.weight",)
"""Matrices that stay in float32, as in the files of llama.cpp's own converter."""


def write_file(
    path: Path,
    *,
    fields: Mapping[str, Any],
    spelling: Spelling,
    places: Mapping[str, Place],
    tensors: Mapping[str, Tensor],
    factors: NDArray[np.float32] | None,
    dtype: Dtype,
) -> None:
    """Write a GGUF file.

    Args:
        path: of the new file.
        fields: the metadata besides the tokenizer's; "general.architecture" is one of them.
        spelling: the tokenizer.
        places: where a tensor goes, by its name in transformers.
        tensors: the tensors, float32, by the same names; each is asked for once.
        factors: what frequencies of the rotation are divided by; None for nothing.
        dtype: of the matrices; vectors are float32.

    Raises:
        OSError: the file cannot be written.
    """
    file = GGUFWriter(path, fields["general.architecture"])
    try:
        _add_fields(file, {**fields, "general.file_type": int(KINDS[dtype][1])})
        _add_tokenizer(file, spelling)
        kinds = {name: _kind(place, dtype) for name, place in places.items()}
        for name, place in places.items():
            _add_tensor(file, place.name, place.shape, kinds[name])
        if factors is not None:
            _add_tensor(file, rope.NAME, factors.shape, GGMLQuantizationType.F32)
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.write_ti_data_to_file()
        for name, place in places.items():
            tensor = place.to_gguf(tensors[name].numpy())
            with np.errstate(all="ignore"):  # the proof finds what becomes infinite
                packed = quantize(tensor, kinds[name])
            file.write_tensor_data(packed)
        if factors is not None:
            file.write_tensor_data(factors)
    finally:
        file.close()


def _kind(place: Place, dtype: Dtype) -> GGMLQuantizationType:
    """The type of a tensor: float32 for vectors, float16 for rows that blocks do not fill."""
    if len(place.shape) == 1 or place.name in SINGLE:
        return GGMLQuantizationType.F32
    kind = KINDS[dtype][0]
    if place.shape[-1] % GGML_QUANT_SIZES[kind][0]:
        return GGMLQuantizationType.F16
    return kind


def _add_fields(file: GGUFWriter, fields: Mapping[str, Any]) -> None:
    for key, value in fields.items():
        if key == "general.architecture":  # the writer's own
            continue
        if isinstance(value, bool):
            file.add_bool(key, value)
        elif isinstance(value, int):
            file.add_uint32(key, value)
        elif isinstance(value, float):
            file.add_float32(key, value)
        elif isinstance(value, str):
            file.add_string(key, value)
        else:
            file.add_array(key, value)


def _add_tokenizer(file: GGUFWriter, spelling: Spelling) -> None:
    keys = {"model": spelling.model, "tokens": spelling.tokens, **spelling.fields}
    _add_fields(file, {f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    types = [int(kind) for kind in spelling.types]
    file.add_key_value("tokenizer.ggml.token_type", types, GGUFValueType.ARRAY, GGUFValueType.INT32)
    if spelling.chat_template:
        file.add_string("tokenizer.chat_template", spelling.chat_template)


def _add_tensor(
    file: GGUFWriter, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType
) -> None:
    block, size = GGML_QUANT_SIZES[kind]
    rows = (*shape[:-1], shape[-1] // block * size)
    packed = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    if kind in packed:
        count = int(np.prod(shape)) * size
        file.add_tensor_info(name, shape, np.dtype(packed[kind]), count, raw_dtype=kind)
    else:
        count = int(np.prod(rows))
        file.add_tensor_info(name, rows, np.dtype(np.uint8), count, raw_dtype=kind)
