"""A bundle: a folder with one weight file, three graphs that share it, and files for programs."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors.numpy import save_file

from gptkit.files import digest
from gptkit.onnx.export import build
from gptkit.onnx.export.build import GraphName
from gptkit.onnx.export.foreign_configs import CONFIG_FILES, config_files, rarest_token
from gptkit.onnx.export.readme import readme
from gptkit.onnx.graphs.source import ExportSource
from gptkit.onnx.proof.compare import (
    Case,
    compare_weights,
    ort_errors_as_export_errors,
    prompts_for,
    raise_if_failed,
)
from gptkit.onnx.proof.prove import prove_generate, torch_tokens
from gptkit.onnx.proof.prove_bundle import prove_decode, prove_loss, prove_step
from gptkit.onnx.proof.seal import append_proof
from gptkit.onnx.runtime.decode_session import DECODE_FILE, STEP_FILE
from gptkit.onnx.runtime.generate_session import GenerateSession, feeds
from gptkit.onnx.runtime.metadata import Comparison, is_exported
from gptkit.onnx.runtime.model import GENERATE_FILE, SELFTEST_FILE
from gptkit.onnx.runtime.providers import WEIGHTS_FILE
from gptkit.plugin import Data, TrainedModel
from gptkit.sampling.rule import Ints, SamplingOptions

README_FILE = "README.md"
GRAPHS: dict[str, GraphName] = {GENERATE_FILE: "generate", STEP_FILE: "step", DECODE_FILE: "decode"}
"""The graphs by file."""
SAMPLED_TEXT = 128
"""Longest text that the graph `step` is compared on."""
SELFTEST_TOKENS = 32
"""Tokens that each case of the self-test draws."""


def is_bundle(path: Path) -> bool:
    """Whether a folder is a bundle."""
    return is_exported(path / GENERATE_FILE) and (path / SELFTEST_FILE).is_file()


def foreign_files(path: Path) -> list[str]:
    """The files in a bundle's folder that do not belong to the bundle."""
    own = {*GRAPHS, WEIGHTS_FILE, SELFTEST_FILE, README_FILE, *CONFIG_FILES}
    return sorted(found.name for found in path.iterdir() if found.name not in own)


def write_bundle(
    trained: TrainedModel, source: ExportSource, data: Data | None, folder: Path
) -> list[Comparison]:
    """Write a bundle into a new folder and prove it.

    Raises:
        ExportError: a graph is not equal to the checkpoint.
    """
    folder.mkdir()
    _write_graphs(trained, source, folder)
    text = _sampled_text(trained)
    with ort_errors_as_export_errors(folder.name):
        comparisons = _prove(trained, source, data, folder, text)
    raise_if_failed(folder.name, comparisons)
    weights = digest(folder / WEIGHTS_FILE)
    for name in GRAPHS:
        append_proof(folder / name, comparisons, weights)
    rarest = rarest_token(build.gpt(trained), text)
    configs = config_files(source.config, trained.codec, device=source.device, rarest=rarest)
    for name, value in configs.items():
        _write_text(folder / name, json.dumps(value, indent=2, ensure_ascii=False) + os.linesep)
    _write_text(folder / SELFTEST_FILE, json.dumps(_selftest(folder)) + os.linesep)
    described = build.describe(trained, source, "generate")
    _write_text(folder / README_FILE, readme(folder.name, described))
    return comparisons


def _write_graphs(trained: TrainedModel, source: ExportSource, folder: Path) -> None:
    """Write the weights once, and graphs that refer to their offsets in that file."""
    models = {name: build.build_model(trained, source, graph) for name, graph in GRAPHS.items()}
    values = [value for model in models.values() for value in _weights(model, source)]
    arrays: dict[str, NDArray[Any]] = {str(v.name): _tensor(v).numpy() for v in values}
    save_file(arrays, folder / WEIGHTS_FILE)
    ranges = _byte_ranges(folder / WEIGHTS_FILE)
    for value in values:
        tensor, (offset, length) = _tensor(value), ranges[str(value.name)]
        value.const_value = ir.ExternalTensor(
            WEIGHTS_FILE,
            offset,
            length,
            tensor.dtype,
            shape=ir.Shape(tensor.numpy().shape),
            name=str(value.name),
            base_dir=folder,
        )
    for name, model in models.items():
        ir.save(model, folder / name)
    shutil.copymode(folder / GENERATE_FILE, folder / WEIGHTS_FILE)  # safetensors writes mode 0600


def _weights(model: ir.Model, source: ExportSource) -> list[ir.Value]:
    """The initializers that are weights of the checkpoint, quantised or not."""
    graphs = [model.graph, *model.graph.subgraphs()]
    return [
        value
        for graph in graphs
        for name, value in graph.initializers.items()
        if name in source.tensors or name.rpartition(".")[0] in source.tensors
    ]


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _byte_ranges(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and length in bytes of each tensor in a safetensors file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    ranges = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        ranges[name] = (8 + size + start, end - start)
    return ranges


def _prove(
    trained: TrainedModel, source: ExportSource, data: Data | None, folder: Path, text: Ints
) -> list[Comparison]:
    model, dtype = build.gpt(trained), source.precision.name
    starts = np.array(trained.codec.starts, dtype=np.int64)
    prompts = prompts_for(model, data)
    return [
        *prove_generate(folder / GENERATE_FILE, model, starts, dtype, prompts),
        compare_weights(folder / STEP_FILE, model, dtype),
        *prove_step(folder / STEP_FILE, model, text, dtype, prompts),
        compare_weights(folder / DECODE_FILE, model, dtype),
        *prove_decode(folder, model, dtype),
        *([prove_loss(folder / STEP_FILE, model, data, dtype)] if data else []),
    ]


def _sampled_text(trained: TrainedModel) -> Ints:
    """A text sampled from the model, int64 (1, T)."""
    model, start = build.gpt(trained), trained.codec.starts[0]
    prompt = np.array([start], dtype=np.int64)
    draws = min(model.config.block_size, SAMPLED_TEXT) - len(start)
    if draws < 1:
        return prompt[:, : model.config.block_size]
    case = Case("sampled text", prompt, draws, SamplingOptions(seed=5))
    return np.concatenate([prompt, torch_tokens(model, case)], axis=1)


def _selftest(folder: Path) -> dict[str, Any]:
    """Inputs of `generate.onnx` with the tokens that it draws, to test a port."""
    session = GenerateSession(folder / GENERATE_FILE, "cpu")
    prompt = np.array(session.metadata.tokens.starts[:1], dtype=np.int64)
    k = max(1, session.metadata.vocab_size // 2)
    cases = []
    for sampling in (
        SamplingOptions(temperature=0),
        SamplingOptions(seed=7),
        SamplingOptions(temperature=0.8, top_k=k, top_p=0.9, seed=8),
    ):
        inputs = feeds(prompt, SELFTEST_TOKENS, sampling)
        tokens = session.generate(prompt, SELFTEST_TOKENS, sampling)
        cases.append({name: value.tolist() for name, value in inputs.items()})
        cases[-1]["tokens"] = tokens.tolist()
    return {"graph": GENERATE_FILE, "cases": cases}


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
