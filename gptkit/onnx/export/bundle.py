"""A kit: a folder with one weight file, small graphs that point into it, and what others need."""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors.numpy import save_file

from gptkit.onnx.export import foreign_configs as foreign
from gptkit.onnx.export.blueprint import Blueprint, GraphName
from gptkit.onnx.proof.compare import (
    Case,
    check_weights,
    ort_errors_as_export_errors,
    raise_if_failed,
)
from gptkit.onnx.proof.prove import prove_generate, torch_tokens
from gptkit.onnx.proof.prove_bundle import prove_decode, prove_loss, prove_step
from gptkit.onnx.proof.seal import append_proof
from gptkit.onnx.runtime.decode_session import DECODE_FILE, STEP_FILE
from gptkit.onnx.runtime.generate_session import GenerateSession, feeds
from gptkit.onnx.runtime.metadata import Check, digest
from gptkit.onnx.runtime.model import GENERATE_FILE, SELFTEST_FILE
from gptkit.plugin import Data
from gptkit.sampling.rule import Ints, SamplingOptions

WEIGHTS, README = "model.safetensors", "README.md"
GRAPHS: dict[str, GraphName] = {GENERATE_FILE: "generate", STEP_FILE: "step", DECODE_FILE: "decode"}
"""The graphs by file."""


def is_kit(path: Path) -> bool:
    """Whether a folder is a kit that was written earlier."""
    return (path / GENERATE_FILE).is_file() and (path / SELFTEST_FILE).is_file()


def foreign_files(path: Path) -> list[str]:
    """What else lies in the folder of a kit."""
    own = {*GRAPHS, WEIGHTS, SELFTEST_FILE, README, *foreign.NAMES}
    return sorted(found.name for found in path.iterdir() if found.name not in own)


def write(blueprint: Blueprint, data: Data | None, folder: Path) -> list[Check]:
    """Write a kit into a new folder and prove it.

    Raises:
        ExportError: a graph is not equal to the checkpoint.
    """
    folder.mkdir()
    _write_graphs(blueprint, folder)
    real = _real_text(blueprint)
    with ort_errors_as_export_errors(folder.name):
        checks = _prove(blueprint, data, folder, real)
    raise_if_failed(folder.name, checks)
    weights = {WEIGHTS: digest(folder / WEIGHTS)}
    for name in GRAPHS:
        append_proof(folder / name, checks, weights)
    rarest = foreign.rarest_token(blueprint.trained.model, real)
    for name, value in foreign.files(blueprint, end_token=rarest).items():
        _write_json(folder / name, value)
    cases = json.dumps(_selftest(folder))
    (folder / SELFTEST_FILE).write_text(cases + os.linesep, encoding="utf-8")
    _write_readme(blueprint, folder)
    return checks


def _write_graphs(blueprint: Blueprint, folder: Path) -> None:
    """The weights once, and graphs that name their places in the file."""
    models = {name: blueprint.model(graph) for name, graph in GRAPHS.items()}
    values = [value for model in models.values() for value in _weights(model, blueprint)]
    arrays: dict[str, NDArray[Any]] = {str(v.name): _tensor(v).numpy() for v in values}
    save_file(arrays, folder / WEIGHTS)
    places = _places(folder / WEIGHTS)
    for value in values:
        tensor, (offset, length) = _tensor(value), places[str(value.name)]
        value.const_value = ir.ExternalTensor(
            WEIGHTS, offset, length, tensor.dtype,
            shape=ir.Shape(tensor.numpy().shape), name=str(value.name), base_dir=folder,
        )  # fmt: skip
    for name, model in models.items():
        ir.save(model, folder / name)
    shutil.copymode(folder / GENERATE_FILE, folder / WEIGHTS)  # safetensors lets nobody else read


def _weights(model: ir.Model, blueprint: Blueprint) -> list[ir.Value]:
    """The initializers that are the model's parameters, quantised or not."""
    parameters = set(blueprint.source.tensors)
    graphs = [model.graph, *model.graph.subgraphs()]
    return [
        value
        for graph in graphs
        for name, value in graph.initializers.items()
        if name in parameters or name.rpartition(".")[0] in parameters
    ]


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _places(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor of a safetensors file is: its first byte, and how many it has."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    start = 8 + size
    return {
        name: (
            start + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }


def _prove(blueprint: Blueprint, data: Data | None, folder: Path, real: Ints) -> list[Check]:
    model, dtype = blueprint.trained.model, blueprint.dtype
    starts = np.array(blueprint.trained.codec.starts, dtype=np.int64)
    return [
        *prove_generate(folder / GENERATE_FILE, model, starts, dtype),
        check_weights(folder / STEP_FILE, model, dtype),
        *prove_step(folder / STEP_FILE, model, real, dtype),
        check_weights(folder / DECODE_FILE, model, dtype),
        *prove_decode(folder, model, dtype),
        *([prove_loss(folder / STEP_FILE, model, data, dtype)] if data else []),
    ]


def _real_text(blueprint: Blueprint) -> Ints:
    """A text that the model drew, int64 (1, T)."""
    model, start = blueprint.trained.model, blueprint.trained.codec.starts[0]
    prompt = np.array([start], dtype=np.int64)
    draws = min(model.config.block_size, 128) - len(start)
    if draws < 1:
        return prompt[:, : model.config.block_size]
    case = Case("real", prompt, draws, SamplingOptions(seed=5))
    return np.concatenate([prompt, torch_tokens(model, case)], axis=1)


def _selftest(folder: Path) -> dict[str, Any]:
    """Runs of `generate.onnx` with their results, for ports to check themselves."""
    model = GenerateSession(folder / GENERATE_FILE, "cpu")
    prompt = np.array(model.metadata.tokens.starts[:1], dtype=np.int64)
    cases = []
    for sampling in (
        SamplingOptions(temperature=0),
        SamplingOptions(seed=7),
        SamplingOptions(
            temperature=0.8, top_k=max(1, model.metadata.vocab_size // 2), top_p=0.9, seed=8
        ),
    ):
        inputs = feeds(prompt, 32, sampling)
        tokens = model.generate(prompt, 32, sampling)
        cases.append({name: value.tolist() for name, value in inputs.items()})
        cases[-1]["tokens"] = tokens.tolist()
    return {"graph": GENERATE_FILE, "cases": cases}


def _write_readme(blueprint: Blueprint, folder: Path) -> None:
    """What the kit holds and how to use it, with the model's own values."""
    metadata = blueprint.metadata("generate")
    tokens, legend = metadata.tokens, metadata.tokens.legend or {}
    kind = "text" if "text" in legend else "image" if "width" in legend else "other"
    values = {
        "name": folder.name, "dataset": metadata.dataset, "step": metadata.step,
        "dtype": metadata.dtype, "opset": metadata.opset, "gptkit": metadata.gptkit,
        "block_size": metadata.block_size, "vocab_size": metadata.vocab_size,
        "start": tokens.starts[0], "temperature": tokens.temperature,
        "count": tokens.length - len(tokens.starts[0]) if tokens.length else 200,
        "classes": f" (class 1 of {len(tokens.starts)})" if len(tokens.starts) > 1 else "",
        "legend": json.dumps(legend.get("text"), ensure_ascii=False),
        "sample": f"--seed 1{'' if tokens.suffix == '.txt' else f' --out drawn{tokens.suffix}'}",
    }  # fmt: skip
    template = Path(__file__).with_name("templates") / "README.md"
    text = re.sub(
        r"<!-- if (\w+) -->\n(.*?)<!-- end -->\n",
        lambda part: part[2] if part[1] == kind else "",
        template.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    (folder / README).write_text(Template(text).substitute(values), encoding="utf-8")


def _write_json(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + os.linesep, encoding="utf-8")
