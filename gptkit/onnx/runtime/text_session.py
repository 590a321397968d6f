"""The model inside a graph `generate`, for whole texts: token ids to features and logits.

Imports no torch. The graph gives only the tokens that it draws. Its innermost body holds the model,
which reads a prompt at once, but computes logits of the last token alone. `text_model` takes out
the nodes that lead to the logits, and computes those of all tokens: the nodes and the weights are
the file's own.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from gptkit.errors import ModelFileError
from gptkit.onnx.runtime.providers import open_session
from gptkit.sampling.rule import Floats, Ints

LOGITS, NEW_IDS, FIRST_ROW = "logits", "new_ids", "first_row"
"""Values of the innermost body, and the constant 0 that is added."""
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class TextSession:
    """Computes features and logits of all tokens of a text.

    Args:
        path: of a file with the graph `generate`; a bundle's weights are beside it.
        device: "cpu", "cuda", "cuda:N" or "auto".

    Raises:
        ModelFileError: the graph is not built as gptkit builds it.
        UsageError: the device is not available.
    """

    def __init__(self, path: Path, device: str) -> None:
        model, self.features_name = text_model(onnx.load(path, load_external_data=False), path)
        self.session = open_session(model.SerializeToString(), device, weights_folder=path.parent)
        inputs = self.session.get_inputs()
        self.empty_cache = {x.name: _empty(x) for x in inputs if x.name != NEW_IDS}

    def logits(self, tokens: Ints) -> Floats:
        """Logits after each of the tokens (T,), float32 (T, vocab_size)."""
        return self._run(LOGITS, tokens)

    def features(self, tokens: Ints) -> Floats:
        """Features of the tokens (T,) after the last norm, float32 (T, n_embd)."""
        return self._run(self.features_name, tokens)

    def _run(self, output: str, tokens: Ints) -> Floats:
        found = self.session.run([output], {NEW_IDS: tokens[None], **self.empty_cache})[0]
        return np.asarray(found, np.float32)


def text_model(generate: ModelProto, path: Path) -> tuple[ModelProto, str]:
    """The nodes of a graph `generate` that compute logits, for all tokens of one row.

    Args:
        generate: the whole file, with or without the weights.
        path: of the file, for errors.

    Returns:
        A model with the inputs `NEW_IDS` and an empty cache, and the name of its output of
        features; the other output is `LOGITS`.
    """
    try:
        block = _loop_body(generate.graph)
        token = _loop_body(block)
        nodes = _nodes_before(LOGITS, token)
        head = next(n for n in reversed(nodes) if n.op_type in ("Gemm", "MatMulNBits"))
        last_token = next(n for n in reversed(nodes) if n.op_type == "Gather" and _axis(n) == 1)
    except StopIteration:
        raise ModelFileError(
            f"{path}: its graph is not built as this gptkit builds it", hint="export it again"
        ) from None
    last_token.input[1] = FIRST_ROW  # (1, T, C) to (T, C), instead of (B, T, C) to (B, C)
    last_token.attribute[0].i = 0
    used, graphs = {name for n in nodes for name in n.input}, (generate.graph, block, token)
    outputs = [helper.make_empty_tensor_value_info(name) for name in (LOGITS, head.input[0])]
    weights = [tensor for graph in graphs for tensor in graph.initializer if tensor.name in used]
    first_row = numpy_helper.from_array(np.array(0), FIRST_ROW)
    inputs = [value for graph in graphs for value in graph.input if value.name in used]
    graph = helper.make_graph(nodes, "text", inputs, outputs, [*weights, first_row])
    opsets, version = generate.opset_import, generate.ir_version
    model = helper.make_model(graph, opset_imports=opsets, ir_version=version)
    return model, head.input[0]


def _loop_body(graph: GraphProto) -> GraphProto:
    loop = next(node for node in graph.node if node.op_type == "Loop")
    return next(attribute.g for attribute in loop.attribute if attribute.name == "body")


def _nodes_before(name: str, graph: GraphProto) -> list[NodeProto]:
    """The nodes that compute a value, in order; they come after those whose outputs they read."""
    needed, found = {name}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            found.append(node)
    return found[::-1]


def _axis(node: NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)


def _empty(declared: Any) -> NDArray[Any]:
    """A cache input without tokens: 0 for a length, else an array of one row and length 0."""
    sizes = {"batch": 1}
    shape = [size if isinstance(size, int) else sizes.get(size, 0) for size in declared.shape]
    return np.zeros(shape, DTYPES[declared.type])
