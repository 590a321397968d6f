"""Scope: the nodes of one graph while it is written, operators called by their ONNX names.

    g = Scope()
    y = g.Add(g.MatMul(x, w), 1.0)

Numbers and lists become constants: ints int64, floats float32. Graphs inside a graph (the bodies of
Loop and If) are scopes of their own, which may use the values of the scopes around them.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

MICROSOFT = "com.microsoft"
"""The domain of onnxruntime's own operators."""
IR_VERSION = 10
"""Of the file format; the newest that onnxruntime 1.19 reads."""

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
INT32, INT64, UINT64 = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT64
BOOL = ir.DataType.BOOL

Dimensions = Sequence[int | str | None]
Operand = ir.Value | NDArray[Any] | Sequence[int] | int | float | bool | None


class Scope:
    """Collects nodes and initializers; `scope.Name(*inputs, **attributes)` adds an operator.

    Args:
        outer: the scope around this one, for the body of a Loop or an If.
    """

    def __init__(self, outer: "Scope | None" = None) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self._numbers: itertools.count[int] = outer._numbers if outer else itertools.count()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def __getattr__(self, operator: str) -> Callable[..., Any]:
        if not operator[:1].isupper():
            raise AttributeError(operator)

        def add(*inputs: Operand, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
            values = [None if x is None else self.value(x) for x in inputs]
            while values and values[-1] is None:
                values.pop()
            node = ir.node(
                operator, values, attributes, domain=domain, num_outputs=outputs,
                name=f"{operator}_{next(self._numbers)}",
            )  # fmt: skip
            for i, output in enumerate(node.outputs):
                output.name = f"{node.name}_{i}" if outputs > 1 else node.name
            self.nodes.append(node)
            return node.outputs[0] if outputs == 1 else node.outputs

        return add

    def value(self, operand: ir.Value | NDArray[Any] | Sequence[int] | float) -> ir.Value:
        """A value as it is; a number, list or array as a constant, each kept once."""
        if isinstance(operand, ir.Value):
            return operand
        array = np.asarray(operand)
        if isinstance(operand, float):
            array = array.astype(np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.initializer(f"constant_{next(self._numbers)}", array)
        return self._constants[key]

    def initializer(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A named tensor that is part of the file; the first under its name stays."""
        if name not in self.initializers:
            tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
            self.initializers[name] = ir.Value(
                name=name,
                const_value=tensor,
                shape=ir.Shape(tensor.shape),
                type=ir.TensorType(tensor.dtype),
            )
        return self.initializers[name]

    def graph(self, name: str, inputs: Iterable[ir.Value], outputs: Iterable[ir.Value]) -> ir.Graph:
        """The graph that was written here, as the body of a Loop or an If."""
        return ir.Graph(
            list(inputs),
            list(outputs),
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            name=name,
        )

    def model(
        self,
        name: str,
        inputs: Iterable[ir.Value],
        outputs: Iterable[ir.Value],
        *,
        opset: int,
        metadata: Mapping[str, str],
    ) -> ir.Model:
        """The graph that was written here, as a whole model."""
        graph = self.graph(name, inputs, outputs)
        graph.opset_imports.update({"": opset, MICROSOFT: 1})
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="gptkit")
        model.metadata_props.update(metadata)
        return model


def declare(name: str, dtype: ir.DataType, shape: Dimensions = ()) -> ir.Value:
    """A graph's input; dimensions that vary are named or None."""
    return typed(ir.Value(name=name), dtype, shape)


def typed(
    value: ir.Value, dtype: ir.DataType, shape: Dimensions = (), *, name: str | None = None
) -> ir.Value:
    """Say what a graph's output is, and give it a name that others can use."""
    value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
    value.name = name or value.name
    return value
