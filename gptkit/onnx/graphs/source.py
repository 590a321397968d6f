"""ExportSource: what the graphs of one export are written from. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gptkit.onnx.graphs.scope import FLOAT
from gptkit.onnx.graphs.weights import PRECISIONS, Array, Precision
from gptkit.recipe.options import GPTConfig
from gptkit.recipe.sizes import not_fused


class TrainedGPT(Protocol):
    """What is exported: a `gptkit.model.gpt.GPT`, whose tensors are torch's."""

    @property
    def config(self) -> GPTConfig:
        """Its sizes and options."""

    def weights(self) -> dict[str, Any]:
        """All parameters by name."""


@dataclass(frozen=True)
class ExportSource:
    """A model, the precision of the export and the device that it is made for."""

    config: GPTConfig
    tensors: Mapping[str, Array]
    """The weights by their names in the checkpoint, float32."""
    precision: Precision
    device: str = "cpu"
    """What the graph `decode` is made for: "cpu" or "cuda"."""
    fused: bool = True
    """Whether the graph `decode` uses onnxruntime's GroupQueryAttention."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Entries of the file's ONNX metadata."""

    @classmethod
    def of(
        cls, model: TrainedGPT, dtype: str = "float32", *, device: str = "cpu"
    ) -> "ExportSource":
        """The source for a model on the CPU; its weights are used in place, not copied."""
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in model.weights().items()}
        precision = PRECISIONS[dtype]
        # on CUDA GroupQueryAttention has no float32 kernel
        supported = device == "cpu" or precision.real != FLOAT
        fused = supported and not_fused(model.config) is None
        return cls(model.config, weights, precision, device, fused)

    @property
    def weight_bytes(self) -> int:
        """Size of the weights in the file, without the scales of quantised ones."""
        bits = self.precision.bits or 8 * self.precision.array(0.0).itemsize
        return sum(tensor.size for tensor in self.tensors.values()) * bits // 8
