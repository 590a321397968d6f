"""What is exported: a checkpoint, a precision, an opset; and the graphs that come of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import onnx_ir as ir

from gptkit import __version__
from gptkit.onnx.graphs.decode import decode_model
from gptkit.onnx.graphs.generate import generate_model
from gptkit.onnx.graphs.scope import FLOAT
from gptkit.onnx.graphs.source import Source
from gptkit.onnx.graphs.step import step_model
from gptkit.onnx.runtime.metadata import Metadata, Tokens
from gptkit.runs.loaded import LoadedModel

GraphName = Literal["generate", "step", "decode"]


@dataclass(frozen=True)
class Blueprint:
    """A checkpoint, opened on the CPU in float32, and how to export it.

    Args:
        trained: the checkpoint.
        dtype: float32, float16, int8 or int4.
        opset: the version of ONNX' operators.
        device: what `decode` is made for, "cpu" or "cuda".
    """

    trained: LoadedModel
    dtype: str
    opset: int = 21
    device: str = "cpu"

    @cached_property
    def source(self) -> Source:
        """What the graphs are written from, in the memory of the model."""
        return Source.of(self.trained.model, self.dtype, opset=self.opset)

    @property
    def weight_bytes(self) -> int:
        """About what the weights take in the file."""
        precision = self.source.precision
        wide = precision.bits or 8 * precision.array(0.0).itemsize
        return sum(tensor.size for tensor in self.source.tensors.values()) * wide // 8

    def model(self, graph: GraphName) -> ir.Model:
        """One of the graphs, its metadata included."""
        # GroupQueryAttention has no float32 kernel on CUDA, and wants heads of a multiple of 8
        fused = self.device == "cpu" or self.source.precision.real != FLOAT
        fused = fused and self.trained.model.config.head_size % 8 == 0
        builders: dict[GraphName, Callable[..., ir.Model]] = {
            "generate": generate_model,
            "step": step_model,
            "decode": partial(decode_model, fused=fused),
        }
        entries = self.metadata(graph).entries()
        return builders[graph](replace(self.source, metadata=entries))

    def metadata(self, graph: GraphName) -> Metadata:
        """What a file with that graph says of itself."""
        state, codec, config = self.trained.state, self.trained.codec, self.trained.model.config
        return Metadata(
            graph=graph,
            dtype=self.dtype,
            opset=self.opset,
            gptkit=__version__,
            config=config.model_dump(mode="json"),
            block_size=config.block_size,
            vocab_size=config.vocab_size,
            codec=state.codec,
            tokens=Tokens(
                starts=codec.starts,
                length=codec.length,
                temperature=codec.temperature,
                suffix=codec.suffix,
                legend=codec.legend(),
            ),
            dataset=state.dataset,
            step=state.step,
            val_loss=state.val_loss,
            checkpoint_sha256=state.sha256["model.safetensors"],
        )
