"""Scope: one ONNX graph while it is written; operators are called by their ONNX names.

    g = Scope()
    with g.named("h.0.mlp.act"):
        y = g.Mul(g.Relu(x), 2.0)    # nodes h.0.mlp.act/Relu and h.0.mlp.act/Mul

Numbers and lists become constants: ints int64, floats float32. A graph inside a graph (the body of
a Loop or an If) is a scope of its own, which may use the values of the scopes around it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptkit import __version__

OPSET = 21
"""Version of the ONNX operators; onnxruntime 1.19 and later have it."""
MICROSOFT = "com.microsoft"
"""Domain of onnxruntime's own operators."""
IR_VERSION = 10
"""Version of the file format; onnxruntime 1.19 reads no newer one."""
SHOWN_NUMBERS = 4
"""A constant of at most this many numbers has them in its name."""

FLOAT: ir.DataType = ir.DataType.FLOAT
FLOAT16: ir.DataType = ir.DataType.FLOAT16
INT32, INT64, UINT64 = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT64
BOOL = ir.DataType.BOOL

Dimensions = Sequence[int | str | None]
Operand = ir.Value | NDArray[Any] | Sequence[int] | int | float | bool | None


class Scope:
    """Collects the nodes and initializers of one graph; `scope.Name(...)` adds a node.

    Args:
        outer: the scope around this one, for the body of a Loop or an If.
    """

    def __init__(self, outer: "Scope | None" = None) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.role: str = outer.role if outer else ""
        """Prefix of the names of new nodes."""
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._counts: Counter[str] = outer._counts if outer else Counter()

    @contextmanager
    def named(self, role: str) -> Iterator[None]:
        """Name the nodes added inside after their part of the model, e.g. `h.0.attn.qkv`.

        Nodes of one role and operator are numbered from the second on: `h.0/Add`, `h.0/Add_2`.
        Nested roles are not joined: the innermost one counts.
        """
        before, self.role = self.role, role
        try:
            yield
        finally:
            self.role = before

    def __getattr__(self, operator: str) -> Callable[..., Any]:
        if not operator[:1].isupper():
            raise AttributeError(operator)

        def add(*inputs: Operand, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
            values = [None if x is None else self.value(x) for x in inputs]
            while values and values[-1] is None:
                values.pop()
            name = self._unique(f"{self.role}/{operator}" if self.role else operator)
            node = ir.node(
                operator, values, attributes, domain=domain, num_outputs=outputs, name=name
            )
            for i, output in enumerate(node.outputs):
                output.name = name if outputs == 1 else f"{name}:{i}"
            self.nodes.append(node)
            return node.outputs[0] if outputs == 1 else node.outputs

        return add

    def value(self, operand: ir.Value | NDArray[Any] | Sequence[int] | float) -> ir.Value:
        """A value as it is; a number, list or array as a constant, each stored once."""
        if isinstance(operand, ir.Value):
            return operand
        array = np.asarray(operand)
        if isinstance(operand, float):
            array = array.astype(np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            few = array.size <= SHOWN_NUMBERS
            shown = str(array.tolist()).replace(" ", "") if few else f"{array.dtype}{array.shape}"
            self._constants[key] = self.initializer(self._unique(f"constant/{shown}"), array)
        return self._constants[key]

    def initializer(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A named tensor stored in the file; a name that is already there keeps its tensor."""
        if name not in self.initializers:
            tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
            self.initializers[name] = ir.Value(
                name=name,
                const_value=tensor,
                shape=ir.Shape(tensor.shape),
                type=ir.TensorType(tensor.dtype),
            )
        return self.initializers[name]

    def graph(
        self, name: str, inputs: Iterable[ir.Value], outputs: Iterable[ir.Value], *, doc: str
    ) -> ir.Graph:
        """What was written here as the body of a Loop or an If.

        Args:
            name: of the graph.
            inputs: values made by `declare`.
            outputs: values with type and shape, see `typed`.
            doc: what the graph does, in a sentence or two.
        """
        return ir.Graph(
            list(inputs),
            list(outputs),
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            name=name,
            doc_string=doc,
        )

    def model(
        self,
        name: str,
        inputs: Iterable[ir.Value],
        outputs: Iterable[ir.Value],
        *,
        doc: str,
        metadata: Mapping[str, str],
    ) -> ir.Model:
        """What was written here as a whole model; arguments as in `graph`."""
        graph = self.graph(name, inputs, outputs, doc=doc)
        graph.opset_imports.update({"": OPSET, MICROSOFT: 1})
        model = ir.Model(
            graph, ir_version=IR_VERSION, producer_name="gptkit", producer_version=__version__
        )
        model.metadata_props.update(metadata)
        return model

    def _unique(self, name: str) -> str:
        """The name, numbered from its second use in the model on."""
        self._counts[name] += 1
        return name if self._counts[name] == 1 else f"{name}_{self._counts[name]}"


def declare(name: str, dtype: ir.DataType, shape: Dimensions = ()) -> ir.Value:
    """A graph's input; a dimension that varies is a name or None."""
    return typed(ir.Value(name=name), dtype, shape)


def typed(
    value: ir.Value, dtype: ir.DataType, shape: Dimensions = (), *, name: str | None = None
) -> ir.Value:
    """Set a value's type and shape, which outputs of a graph need, and its name if one is given."""
    value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
    value.name = name or value.name
    return value
