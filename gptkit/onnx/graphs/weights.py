"""Weights: a model's tensors as a graph's initializers, in the precision of the export.

Linear layers keep the names and the layout (out, in) that they have in the checkpoint. int8 and
int4 quantise the weights only: blocks of 32 numbers along the input share a scale, the format of
onnxruntime's MatMulNBits and GatherBlockQuantized. Weights that were quantised before, as in an
imported GGUF file, keep their levels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptkit.onnx.graphs.scope import FLOAT, FLOAT16, MICROSOFT, Scope

BLOCK = 32
"""Weights that share a scale."""
VOCABULARY = ("wte.weight", "lm_head.weight")
"""The matrices with a row for each token id, which have at least 8 bits: they need them most."""
GRID = 16
"""Levels of a block of a file whose weights were quantised with a smallest value, as in Q4_1."""
ON_A_GRID = 1e-3
"""The largest error of weights that have such levels, in parts of the step between two of them."""
PART = 1 << 22
"""Weights that are quantised at once."""
INT8_ACTIVATIONS = 4
"""accuracy_level of MatMulNBits for products in int8; products in float32 are 20 times slower."""

LEVELS, SCALES, SHIFTS = "quantised", "scales", "shifts"
"""The last parts of the names of a quantised matrix in a file."""

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Precision:
    """The number format of an exported file."""

    name: str
    real: ir.DataType = FLOAT
    """Type of the activations and of weights that are not quantised."""
    bits: int | None = None
    """Width of quantised weights; None: not quantised."""

    def bits_of(self, name: str) -> int:
        """Width of a quantised matrix."""
        assert self.bits is not None
        return max(self.bits, 8) if name in VOCABULARY else self.bits

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
        packed, scales, shifts = self._quantised(weight)
        y = self.scope.MatMulNBits(
            x,
            packed,
            scales,
            None,
            None,
            bias,
            domain=MICROSOFT,
            K=size_in,
            N=size_out,
            bits=self.precision.bits_of(weight),
            block_size=BLOCK,
            accuracy_level=INT8_ACTIVATIONS,
        )
        if shifts is None:
            return y
        blocks = self.scope.Reshape(x, [-1, size_in // BLOCK, BLOCK])
        sums = self.scope.ReduceSum(blocks, [2], keepdims=0)
        return self.scope.Gemm(sums, shifts, y)

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
        packed, scales, _ = self._quantised(name)
        blocks = g.GatherBlockQuantized(
            packed,
            ids,
            g.Unsqueeze(scales, [2]),
            domain=MICROSOFT,
            bits=self.precision.bits_of(name),
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=2,
        )
        return g.Reshape(blocks, [0, 0, width])

    def _quantised(self, name: str) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """The levels, the scales and the shifts, if any, of a matrix."""
        stored = self.scope.initializers
        if f"{name}.{LEVELS}" not in stored:
            for part, values in quantised(name, self.tensors[name], self.precision).items():
                self.scope.initializer(f"{name}.{part}", values)
        levels, scales = stored[f"{name}.{LEVELS}"], stored[f"{name}.{SCALES}"]
        return levels, scales, stored.get(f"{name}.{SHIFTS}")


def quantised(name: str, weight: Array, precision: Precision) -> dict[str, Array]:
    """What a file has of a matrix: arrays by the last parts of their names.

    Args:
        name: of the matrix.
        weight: float (out, in).
        precision: of the export.
    """
    bits = precision.bits_of(name)
    found = None if name in VOCABULARY else quantise_with_shifts(weight, bits)
    if found is None:
        levels, scales = quantise(weight, bits)
        return {LEVELS: levels, SCALES: precision.array(scales)}
    levels, scales, shifts = found
    return {LEVELS: levels, SCALES: precision.array(scales), SHIFTS: precision.array(shifts)}


def quantise(weight: Array, bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Symmetric quantisation in blocks along the input.

    With M = 2**(bits - 1), the value of largest magnitude in a block becomes -M, so that the scale
    is negative where that value is positive, or, if the errors of the block are smaller then,
    M - 1 on either side, as in GGUF's Q8_0. Stored values are shifted by M to be unsigned; two
    4-bit values share a byte, the first one in its low half.

    Args:
        weight: float (out, in).
        bits: 8 or 4.

    Returns:
        uint8 (out, blocks, BLOCK * bits / 8) and float32 (out, blocks).
    """
    parts = [_quantise(rows, bits) for rows in _row_parts(weight)]
    levels, scales = zip(*parts, strict=True)
    return np.concatenate(levels), np.concatenate(scales)


def quantise_with_shifts(
    weight: Array, bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]] | None:
    """The levels that weights already have, as in GGUF's Q4_1: evenly spaced between two values.

    A block's weights are its scale times (level - 2**(bits - 1)), plus its shift.

    Returns:
        As from `quantise`, and the shifts, float32 (blocks, out); None if the weights do not lie on
        such levels, or need no shifts.
    """
    if weight.shape[1] % BLOCK:
        return None
    found = []
    for rows in _row_parts(weight):
        if (part := _on_a_grid(rows, bits)) is None:
            return None
        found.append(part)
    levels, scales, shifts = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if (np.abs(shifts) < 1e-3 * scales).all():  # then it is symmetric
        return None
    return levels, scales, np.ascontiguousarray(shifts.T)


def _row_parts(weight: Array) -> Iterator[Array]:
    """The rows of a matrix, as many at once as need little memory."""
    count = max(1, PART // weight.shape[1])
    return (weight[first : first + count] for first in range(0, len(weight), count))


def _quantise(weight: Array, bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    middle = 2 ** (bits - 1)
    blocks = _blocks(weight)
    largest = np.abs(blocks).argmax(axis=-1, keepdims=True)
    largest = np.take_along_axis(blocks, largest, axis=-1)
    tries = [_rounded(blocks, largest / parts, middle) for parts in (-middle, middle - 1)]
    (levels, scales, errors), (others, their_scales, their_errors) = tries
    better = their_errors < errors
    return (
        _packed(np.where(better, others, levels).astype(np.uint8), bits),
        np.where(better, their_scales, scales)[..., 0],
    )


def _on_a_grid(
    weight: Array, bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]] | None:
    """Levels, scales and shifts, (out, blocks); None if the weights do not lie on such levels."""
    blocks = _blocks(weight)
    low, high = (function(blocks, axis=-1, keepdims=True) for function in (np.min, np.max))
    steps = (high - low) / (GRID - 1)
    scales = np.where(steps == 0, np.float32(1), steps)
    with np.errstate(invalid="ignore"):  # what is not finite lies on no levels
        numbers = np.rint((blocks - low) / scales)
        errors = np.abs(low + numbers * steps - blocks)
    if not (errors <= ON_A_GRID * steps).all():
        return None
    numbers = np.where(steps == 0, np.float32(GRID // 2), numbers)  # the shift alone is the weight
    levels = numbers + (2 ** (bits - 1) - GRID // 2)
    shifts = (low + GRID // 2 * steps)[..., 0]
    return _packed(levels.astype(np.uint8), bits), scales[..., 0], shifts


def _blocks(weight: Array) -> NDArray[np.float32]:
    """The weights as (out, blocks, BLOCK), with zeros at the end of a row."""
    padded = np.pad(weight.astype(np.float32), ((0, 0), (0, -weight.shape[1] % BLOCK)))
    return padded.reshape(len(weight), -1, BLOCK)


def _rounded(
    blocks: NDArray[np.float32], scales: NDArray[np.float32], middle: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Levels from 0 to 2 * middle - 1, the scales, and the sum of each block's errors."""
    scales = np.where(scales == 0, np.float32(1), scales)
    levels = np.clip(np.rint(blocks / scales) + middle, 0, 2 * middle - 1)
    errors = np.abs((levels - middle) * scales - blocks).sum(axis=-1, keepdims=True)
    return levels, scales, errors


def _packed(levels: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return levels
    packed: NDArray[np.uint8] = levels[..., 0::2] | np.left_shift(levels[..., 1::2], np.uint8(4))
    return packed
