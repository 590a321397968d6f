"""Weights: a model's tensors as a graph's initializers, in the precision of the export.

Linear layers keep the checkpoint's names and layout (out, in), so a float32 graph can point into
the checkpoint's own file. int8 and int4 quantise weights only: blocks of 32 numbers along the
input share a scale, as onnxruntime's MatMulNBits and GatherBlockQuantized read them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptkit.onnx.graphs.scope import FLOAT, FLOAT16, MICROSOFT, Scope

BLOCK = 32
"""Numbers that share a scale."""
INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy_level that multiplies in int8; float32 products are 20 times slower."""

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Precision:
    """What numbers an exported file is made of."""

    name: str
    real: ir.DataType = FLOAT
    """Type of activations, and of weights that are not quantised."""
    bits: int | None = None
    """Width of quantised weights; None: not quantised."""

    def array(self, values: Array | float) -> Array:
        """Numbers in the type of the activations."""
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
    """Makes initializers of a scope out of a model's tensors, as they are asked for.

    Args:
        tensors: float32 arrays by their names in the checkpoint.
        precision: of the export.
        scope: the graph that uses them. onnxruntime packs a weight for speed only if the graph
            that uses it, or the one around that, holds it.
    """

    def __init__(self, tensors: Mapping[str, Array], precision: Precision, scope: Scope) -> None:
        self.tensors, self.precision, self.scope = tensors, precision, scope

    def __getitem__(self, name: str) -> ir.Value:
        return self.scope.initializer(name, self.precision.array(self.tensors[name]))

    def get(self, name: str) -> ir.Value | None:
        """A tensor that the model may lack, such as a bias."""
        return self[name] if name in self.tensors else None

    def constant(self, name: str, values: Array | float) -> ir.Value:
        """A tensor that is no parameter, in the type of the activations."""
        return self.scope.initializer(name, self.precision.array(values))

    def linear(self, x: ir.Value, layer: str) -> ir.Value:
        """A linear layer, (N, in) to (N, out)."""
        weight, bias = f"{layer}.weight", self.get(f"{layer}.bias")
        if self.precision.bits is None:
            return self.scope.Gemm(x, self[weight], bias, transB=1)
        size_out, size_in = self.tensors[weight].shape
        packed, scales = self._quantised(weight)
        return self.scope.MatMulNBits(
            x, packed, scales, None, None, bias,
            domain=MICROSOFT, K=size_in, N=size_out, bits=self.precision.bits, block_size=BLOCK,
            accuracy_level=INT8_ACTIVATIONS,
        )  # fmt: skip

    def rows(self, name: str, ids: ir.Value, *, quantised: bool) -> ir.Value:
        """Rows of a table (V, C) by number, (B, T) to (B, T, C).

        Args:
            name: of the table.
            ids: int64.
            quantised: look them up in the table that a quantised layer of that name multiplies.
        """
        g, width = self.scope, self.tensors[name].shape[1]
        if self.precision.bits is None or not quantised or width % BLOCK:
            return g.Gather(self[name], ids)
        packed, scales = self._quantised(name)
        blocks = g.GatherBlockQuantized(
            packed, ids, g.Unsqueeze(scales, [2]),
            domain=MICROSOFT, bits=self.precision.bits, block_size=BLOCK,
            gather_axis=0, quantize_axis=2,
        )  # fmt: skip
        return g.Reshape(blocks, [0, 0, width])

    def _quantised(self, name: str) -> tuple[ir.Value, ir.Value]:
        bits = self.precision.bits
        assert bits is not None
        if f"{name}.quantised" not in self.scope.initializers:
            packed, scales = quantise(self.tensors[name], bits)
            self.scope.initializer(f"{name}.quantised", packed)
            self.scope.initializer(f"{name}.scales", self.precision.array(scales))
        held = self.scope.initializers
        return held[f"{name}.quantised"], held[f"{name}.scales"]


def quantise(weight: Array, bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Symmetric quantisation by blocks along the input.

    The number of largest magnitude in a block becomes -2**(bits - 1), so its sign decides the
    scale's. Stored values are shifted by 2**(bits - 1); two of 4 bits share a byte, low first.

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
