"""Exported graphs of a model that belongs to no run."""

from pathlib import Path
from typing import Literal

import onnx_ir as ir

from gptkit.model.gpt import GPT
from gptkit.onnx.export.build import GraphName, build_model
from gptkit.onnx.graphs.source import ExportSource
from gptkit.onnx.runtime.decode_session import DECODE_FILE, STEP_FILE
from gptkit.onnx.runtime.model import GENERATE_FILE
from gptkit.plugin import Data, TrainedModel
from gptkit_char_text.codec import CharCodec

GRAPHS: dict[str, GraphName] = {GENERATE_FILE: "generate", STEP_FILE: "step", DECODE_FILE: "decode"}


def write_bundle(
    model: GPT, bundle: Path, dtype: str, device: Literal["cpu", "cuda"] = "cpu"
) -> None:
    """The three graphs in a new folder, each with its own weights, made for that device."""
    bundle.mkdir()
    source = ExportSource.of(model, dtype, device=device)
    for name, graph in GRAPHS.items():
        ir.save(build_model(_untrained(model), source, graph), bundle / name)


def _untrained(model: GPT) -> TrainedModel:
    return TrainedModel(
        module=model,
        config=model.config.model_dump(mode="json"),
        weights=model.weights(),
        codec=CharCodec(vocabulary="".join(map(chr, range(48, 48 + model.config.vocab_size)))),
        dataset="none",
        step=0,
        val_loss=None,
        weights_sha256="",
        load_data=_no_data,
    )


def _no_data() -> Data:
    raise NotImplementedError("fresh weights belong to no data")
