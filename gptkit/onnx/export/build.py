"""The graphs of an export with their metadata."""

from dataclasses import replace
from typing import Literal, assert_never

import onnx_ir as ir

from gptkit import __version__
from gptkit.model.gpt import GPT
from gptkit.onnx.export.legend import make_legend
from gptkit.onnx.graphs.decode import decode_model
from gptkit.onnx.graphs.generate import generate_model
from gptkit.onnx.graphs.scope import OPSET
from gptkit.onnx.graphs.source import ExportSource
from gptkit.onnx.graphs.step import step_model
from gptkit.onnx.runtime.metadata import Metadata, Tokens
from gptkit.plugin import TrainedModel
from gptkit.recipe import codec_record

GraphName = Literal["generate", "step", "decode"]


def build_model(trained: TrainedModel, source: ExportSource, graph: GraphName) -> ir.Model:
    """One of the graphs, with its metadata."""
    source = replace(source, metadata=describe(trained, source, graph).entries())
    match graph:
        case "generate":
            return generate_model(source)
        case "step":
            return step_model(source)
        case "decode":
            return decode_model(source)
        case unknown:
            assert_never(unknown)


def describe(trained: TrainedModel, source: ExportSource, graph: GraphName) -> Metadata:
    """The metadata of a file with that graph."""
    codec, config = trained.codec, source.config
    return Metadata(
        graph=graph,
        dtype=source.precision.name,
        opset=OPSET,
        gptkit=__version__,
        config=config,
        block_size=config.block_size,
        vocab_size=config.vocab_size,
        codec=codec_record.record_codec(codec),
        tokens=Tokens(
            starts=codec.starts,
            stop_tokens=list(codec.stop_tokens),
            length=codec.length,
            temperature=codec.temperature,
            suffix=codec.suffix,
            legend=make_legend(codec),
        ),
        dataset=trained.dataset,
        step=trained.step,
        val_loss=trained.val_loss,
        checkpoint_sha256=trained.weights_sha256,
    )


def gpt(trained: TrainedModel) -> GPT:
    """The module of a trained model, which the graphs are compared with."""
    assert isinstance(trained.module, GPT)
    return trained.module
