"""What a graph is written from: a model's sizes and weights, a precision, an opset."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gptkit.model.gpt import GPT
from gptkit.onnx.graphs.weights import PRECISIONS, Array, Precision
from gptkit.recipe.options import GPTConfig


@dataclass(frozen=True)
class Source:
    """All that the graphs of one export have in common."""

    config: GPTConfig
    tensors: Mapping[str, Array]
    """The weights by their names in the checkpoint, float32."""
    precision: Precision
    opset: int = 21
    """The version of ONNX' operators."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the file says of itself."""

    @classmethod
    def of(cls, model: GPT, dtype: str = "float32", *, opset: int = 21) -> "Source":
        """A model as it is, in an export's dtype; the weights stay where they are on the CPU."""
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in model.weights().items()}
        return cls(model.config, weights, PRECISIONS[dtype], opset)
