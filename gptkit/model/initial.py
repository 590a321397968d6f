"""The weights that a model begins with: a pure function of seed, parameter name and index.

So each of many processes can draw its part of a model without the rest, and gets the same numbers.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from gptkit.recipe import adapters

Draw = Callable[[Generator, int], np.ndarray[tuple[int], np.dtype[np.float32]]]
"""Draws so many numbers."""

CHUNK = 1 << 16
"""Numbers of a generator of its own, which are drawn in order."""


def rows(
    name: str,
    shape: Sequence[int],
    *,
    n_layer: int,
    seed: int,
    first: int = 0,
    last: int | None = None,
) -> Tensor:
    """Draw the rows from first up to last of a parameter, in float32 on the CPU; by default all.

    As in GPT-2 (Radford et al. 2019): matrices are normal with std 0.02, over sqrt(2 n_layer) in
    layers that add to the residual stream; scales are 1 and biases 0. As in PEFT, the first matrix
    of an adapter is uniform (He et al. 2015) between -1 / sqrt(columns) and that, the second is 0.

    Args:
        name: of the parameter in the model.
        shape: of the whole parameter.
        n_layer: the model's number of blocks.
        seed: 0 or greater.
        first: index of the first row.
        last: index after the last row.
    """
    last = shape[0] if last is None else last
    if len(shape) == 1:
        return torch.full((last - first,), float(not name.endswith("bias")))
    width = math.prod(shape[1:])
    if f".{adapters.B}." in name:
        return torch.zeros(last - first, width)
    if f".{adapters.A}." in name:
        numbers = _numbers(_uniform, first * width, last * width, key=[seed, *name.encode()])
        return torch.from_numpy(numbers).mul_(2).sub_(1).div_(math.sqrt(width)).view(-1, width)
    std = 0.02 / math.sqrt(2 * n_layer) if name.endswith("proj.weight") else 0.02
    numbers = _numbers(_normal, first * width, last * width, key=[seed, *name.encode()])
    return torch.from_numpy(numbers).mul_(std).view(-1, *shape[1:])


def _normal(generator: Generator, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return generator.standard_normal(count, dtype=np.float32)


def _uniform(generator: Generator, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return generator.random(count, dtype=np.float32)


def _numbers(
    draw: Draw, start: int, stop: int, *, key: list[int]
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Numbers start up to stop of the endless sequence of random numbers of a key."""
    numbers = np.empty(stop - start, np.float32)
    for chunk in range(start // CHUNK, -(-stop // CHUNK)):
        begin, end = max(start, chunk * CHUNK), min(stop, (chunk + 1) * CHUNK)
        drawn = draw(np.random.default_rng([chunk, *key]), end - chunk * CHUNK)
        numbers[begin - start : end - start] = drawn[begin - chunk * CHUNK :]
    return numbers
