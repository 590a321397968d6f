"""Weights: a model's tensors as a graph's initializers, in the precision of the export.

Linear layers keep the names and the layout (out, in) that they have in the checkpoint. int8 and
int4 quantise the weights only: blocks of 32 numbers along the input share a scale, the format of
onnxruntime's MatMulNBits and GatherBlockQuantized.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptkit.onnx.graphs.scope import FLOAT, FLOAT16, MICROSOFT, Scope

BLOCK = 32
"""Weights that share a scale."""
INT8_ACTIVATIONS = 4
"""accuracy_level of MatMulNBits for products in int8; products in float32 are 20 times slower."""

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Precision:
    """The number format of an exported file."""

    name: str
    real: ir.DataType = FLOAT
    """Type of the activations and of weights that are not quantised."""
    bits: int | None = None
    """Width of quantised weights; None: not quantised."""

    def array(self, values: Array | float) -> Array:
        """Numbers as an array in the type of the activations."""
        return np.asarray(values, dtype=self.real.numpy())


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("float32"),
        Precision("float16", real=FLOAT16),
        Precision("int8", bits=8),
        Precision("int4", bits=4),
    )
}


class Weights:
    """Adds a model's tensors to a scope as initializers, each at its first use.

    Args:
        tensors: float32 arrays by their names in the checkpoint.
        precision: of the export.
        scope: the graph that uses the weights. onnxruntime prepacks a weight for speed only if it
            belongs to the graph that uses it, or to the graph directly around that one.
    """

    def __init__(self, tensors: Mapping[str, Array], precision: Precision, scope: Scope) -> None:
        self.tensors, self.precision, self.scope = tensors, precision, scope

    def __getitem__(self, name: str) -> ir.Value:
        return self.scope.initializer(name, self.precision.array(self.tensors[name]))

    def get(self, name: str) -> ir.Value | None:
        """A tensor, or None if the model does not have it, as with a bias."""
        return self[name] if name in self.tensors else None

    def constant(self, name: str, values: Array | float) -> ir.Value:
        """A named constant that is not a weight, in the type of the activations."""
        return self.scope.initializer(name, self.precision.array(values))

    def linear(self, x: ir.Value, layer: str) -> ir.Value:
        """The linear layer of that name, (N, in) to (N, out)."""
        weight, bias = f"{layer}.weight", self.get(f"{layer}.bias")
        if self.precision.bits is None:
            return self.scope.Gemm(x, self[weight], bias, transB=1)
        size_out, size_in = self.tensors[weight].shape
        packed, scales = self._quantised(weight)
        return self.scope.MatMulNBits(
            x,
            packed,
            scales,
            None,
            None,
            bias,
            domain=MICROSOFT,
            K=size_in,
            N=size_out,
            bits=self.precision.bits,
            block_size=BLOCK,
            accuracy_level=INT8_ACTIVATIONS,
        )

    def embedding(self, name: str, ids: ir.Value, *, quantised: bool) -> ir.Value:
        """Look up rows of a table (V, C), ids int64 (B, T) to (B, T, C).

        Args:
            name: of the table.
            ids: the numbers of the rows.
            quantised: use the quantised table of the linear layer that shares these weights, if
                the export is quantised.
        """
        g, width = self.scope, self.tensors[name].shape[1]
        if self.precision.bits is None or not quantised or width % BLOCK:
            return g.Gather(self[name], ids)
        packed, scales = self._quantised(name)
        blocks = g.GatherBlockQuantized(
            packed,
            ids,
            g.Unsqueeze(scales, [2]),
            domain=MICROSOFT,
            bits=self.precision.bits,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=2,
        )
        return g.Reshape(blocks, [0, 0, width])

    def _quantised(self, name: str) -> tuple[ir.Value, ir.Value]:
        bits = self.precision.bits
        assert bits is not None
        if f"{name}.quantised" not in self.scope.initializers:
            packed, scales = quantise(self.tensors[name], bits)
            self.scope.initializer(f"{name}.quantised", packed)
            self.scope.initializer(f"{name}.scales", self.precision.array(scales))
        stored = self.scope.initializers
        return stored[f"{name}.quantised"], stored[f"{name}.scales"]


def quantise(weight: Array, bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Symmetric quantisation in blocks along the input.

    The value of largest magnitude in a block becomes -2**(bits - 1), so the scale is negative where
    that value is positive. Stored values are shifted by 2**(bits - 1) to be unsigned; two 4-bit
    values share a byte, the first one in its low half.

    Args:
        weight: float (out, in).
        bits: 8 or 4.

    Returns:
        uint8 (out, blocks, BLOCK * bits / 8) and float32 (out, blocks).
    """
    size_out, size_in = weight.shape
    middle = 2 ** (bits - 1)
    padded = np.pad(weight.astype(np.float32), ((0, 0), (0, -size_in % BLOCK)))
    blocks = padded.reshape(size_out, -1, BLOCK)
    largest = np.abs(blocks).argmax(axis=-1, keepdims=True)
    scales = np.take_along_axis(blocks, largest, axis=-1) / -middle
    scales[scales == 0] = 1
    levels = np.clip(np.rint(blocks / scales) + middle, 0, 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        levels = levels[..., 0::2] | (levels[..., 1::2] << 4)
    return levels, scales[..., 0]
