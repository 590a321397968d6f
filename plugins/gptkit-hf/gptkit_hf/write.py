"""Write a model as a folder of transformers, and prove it from the files."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from gptkit.codec import Codec
from gptkit.plugin import TrainedModel, read_json
from gptkit_hf.card import model_card
from gptkit_hf.families import to_config
from gptkit_hf.folder import open_folder
from gptkit_hf.mapping import ToHf
from gptkit_hf.proof import prove
from gptkit_hf.safetensors_files import INDEX, SINGLE
from gptkit_hf.tokenizer_files import tokenizer_files

BYTES = 4
"""Of a number in float32."""
ONNX_FILE, ONNX_DATA = "model.onnx", "model.onnx_data"
LARGEST_FILE = 1_500_000_000
"""Bytes of weights in an ONNX file; protobuf messages end at 2 GiB."""
WRITTEN = re.compile(
    r"(generation_|tokenizer_)?config\.json|tokenizer\.json|chat_template\.jinja|README\.md"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|onnx/model\.onnx(_data)?"
)
"""The files that an export may have."""
MARK = "gptkit"
"""The key of a config.json that tells that gptkit wrote the folder."""


def is_export(path: Path) -> bool:
    """Whether gptkit wrote a folder, so that it may replace it."""
    try:
        return MARK in read_json(path / "config.json")
    except (OSError, ValueError, TypeError):
        return False


def not_written(path: Path) -> list[str]:
    """What a folder has that no export writes, such as ".git"."""
    entries = [*path.iterdir(), *(path / "onnx").glob("*")]
    names = {entry.relative_to(path).as_posix(): entry for entry in entries}
    known = {name for name, entry in names.items() if WRITTEN.fullmatch(name) and entry.is_file()}
    return sorted(names.keys() - known - {"onnx"})


def write_folder(
    model: TrainedModel, path: Path, *, name: str, onnx: bool, shard_bytes: int
) -> None:
    """Write all files and compare what they hold with the model.

    Args:
        model: what to write.
        path: of the new folder.
        name: by which its README.md calls it.
        onnx: also write onnx/model.onnx.
        shard_bytes: of a file of weights, at most, unless a single tensor is larger.

    Raises:
        UsageError: no model of transformers has these options.
        ExportError: what was written is not equal to the model.
    """
    config = to_config(model.config) | _token_ids(model.codec)
    tensors = ToHf(model.config, model.weights)
    path.mkdir()
    _write_json(path / "config.json", config | {MARK: {"step": model.step}})
    _write_json(path / "generation_config.json", _generation(model.codec))
    write_weights(tensors, path, shard_bytes=shard_bytes)
    for file, contents in tokenizer_files(model.codec, model.config["block_size"]).items():
        (path / file).write_text(contents, encoding="utf-8")
    difference = prove(model, open_folder(path))
    card = model_card(model, config, name, difference=difference)
    (path / "README.md").write_text(card, encoding="utf-8")
    if onnx:
        write_onnx(model, path)


def write_onnx(model: TrainedModel, path: Path) -> None:
    """Write the graph of one step with a cache as onnx/model.onnx, where transformers.js looks.

    It is a part of what the format onnx writes and proves; its weights are in the file, or beside
    it where they are too large.
    """
    bundle = path / "onnx" / "bundle"
    bundle.parent.mkdir()
    model.export("onnx", bundle)
    graph = ir.load(bundle / ONNX_FILE)
    size = (path / "onnx" / "bundle" / SINGLE).stat().st_size
    if size > LARGEST_FILE:
        ir.save(graph, bundle.parent / ONNX_FILE, external_data=ONNX_DATA)
        config = read_json(path / "config.json")
        config["transformers.js_config"] = {"use_external_data_format": {ONNX_FILE: 1}}
        _write_json(path / "config.json", config)
    else:
        ir.save(ir.external_data.load_to_model(graph), bundle.parent / ONNX_FILE)
    shutil.rmtree(bundle)


def write_weights(tensors: ToHf, path: Path, *, shard_bytes: int) -> None:
    """Write model.safetensors, or several files with an index, one tensor at a time."""
    shards = _shards(tensors.shapes, shard_bytes)
    count = len(shards)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    names = [SINGLE] if count == 1 else names
    for name, shard in zip(names, shards, strict=True):
        _write_shard(path / name, tensors, shard)
    if len(shards) > 1:
        weight_map = {key: n for n, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(map(_size, tensors.shapes.values()))
        _write_json(path / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(shapes: Mapping[str, tuple[int, ...]], most: int) -> list[list[str]]:
    """Names of tensors, in order, that fit into a file each."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if shards[-1] and size + _size(shape) > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _size(shape)
    return shards


def _size(shape: tuple[int, ...]) -> int:
    return BYTES * torch.Size(shape).numel()


def _write_shard(path: Path, tensors: ToHf, names: list[str]) -> None:
    """Write a safetensors file: the length of the header, the header in JSON, the numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + _size(tensors.shapes[name])
        shape = list(tensors.shapes[name])
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin at a multiple of 8 bytes
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            numbers = tensors[name].to(torch.float32).numpy()
            file.write(np.ascontiguousarray(numbers, dtype="<f4").data)


def _token_ids(codec: Codec) -> dict[str, Any]:
    """The ids that begin and end a text."""
    stops = list(codec.stop_tokens)
    ids: dict[str, Any] = {"bos_token_id": codec.starts[0][0], "pad_token_id": None}
    return ids | {"eos_token_id": stops[0] if len(stops) == 1 else stops or None}


def _generation(codec: Codec) -> dict[str, Any]:
    sampling = {"do_sample": True, "temperature": codec.temperature, "top_k": 0}
    return _token_ids(codec) | sampling


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _write_json(path: Path, value: object) -> None:
    path.write_text(_json(value), encoding="utf-8")
