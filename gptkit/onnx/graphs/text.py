"""text: the model inside a graph `generate`, for whole texts. Imports no torch.

The graph `generate` gives only the tokens that it draws. Its innermost body holds the model, which
reads a prompt at once, but computes logits of the last token alone. Here the nodes of the first
turn that lead to the logits are taken out and compute those of all tokens: nodes and weights are
the file's own.
"""

from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from gptkit.errors import ModelFileError

PROMPT, LOGITS = "prompt_ids", "logits"
"""An input of the graph, and what its sampling rule is given."""
FIRST_ROW = "first_row"
"""The constant 0."""


def text_model(generate: ModelProto, path: Path) -> tuple[ModelProto, str]:
    """The nodes of a graph `generate` that compute logits, for all tokens of one row.

    Args:
        generate: the whole file, with or without the weights.
        path: of the file, for errors.

    Returns:
        A model with the input `PROMPT`, and the name of its output of features; the other output is
        `LOGITS`.
    """
    try:
        block = _loop_body(generate.graph)
        token = _loop_body(block)
        first_turn = [*_first_turn(generate.graph), *_first_turn(block), *token.node]
        nodes = _nodes_before(LOGITS, first_turn)
        head = next(n for n in reversed(nodes) if n.op_type in ("Gemm", "MatMulNBits"))
        last_token = next(n for n in reversed(nodes) if n.op_type == "Gather" and _axis(n) == 1)
        last_token.input[1] = FIRST_ROW  # (1, T, C) to (T, C), instead of (B, T, C) to (B, C)
        last_token.attribute[0].i = 0
    except (StopIteration, IndexError):
        raise ModelFileError(
            f"{path}: its graph is not built as this gptkit builds it", hint="export it again"
        ) from None
    used, graphs = {name for n in nodes for name in n.input}, (generate.graph, block, token)
    outputs = [helper.make_empty_tensor_value_info(name) for name in (LOGITS, head.input[0])]
    weights = [tensor for graph in graphs for tensor in graph.initializer if tensor.name in used]
    first_row = numpy_helper.from_array(np.array(0), FIRST_ROW)
    inputs = [value for value in generate.graph.input if value.name in used]
    graph = helper.make_graph(nodes, "text", inputs, outputs, [*weights, first_row])
    opsets, version = generate.opset_import, generate.ir_version
    model = helper.make_model(graph, opset_imports=opsets, ir_version=version)
    return model, head.input[0]


def _loop(graph: GraphProto) -> NodeProto:
    return next(node for node in graph.node if node.op_type == "Loop")


def _loop_body(graph: GraphProto) -> GraphProto:
    return next(attribute.g for attribute in _loop(graph).attribute if attribute.name == "body")


def _first_turn(graph: GraphProto) -> list[NodeProto]:
    """The nodes of a graph; its Loop gives way to those that name what the first turn is given."""
    given, named = _loop(graph).input[2:], _loop_body(graph).input[2:]
    nodes = [node for node in graph.node if node.op_type != "Loop"]
    state = zip(given, (value.name for value in named), strict=True)
    return nodes + [helper.make_node("Identity", [old], [new]) for old, new in state]


def _nodes_before(name: str, nodes: list[NodeProto]) -> list[NodeProto]:
    """The nodes that compute a value, in order; they come after those whose outputs they read."""
    needed, found = {name}, []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            found.append(node)
    return found[::-1]


def _axis(node: NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
