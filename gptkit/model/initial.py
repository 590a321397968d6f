"""The weights that a model begins with: a pure function of seed, parameter name and index.

So each of many processes can draw its part of a model without the rest, and gets the same numbers.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

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
    layers that add to the residual stream; scales are 1 and biases 0.

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
    std = 0.02 / math.sqrt(2 * n_layer) if name.endswith("proj.weight") else 0.02
    numbers = _normal(first * width, last * width, key=[seed, *name.encode()])
    return torch.from_numpy(numbers).mul_(std).view(-1, *shape[1:])


def _normal(
    start: int, stop: int, *, key: list[int]
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Numbers start up to stop of the endless sequence of standard normal numbers of a key."""
    numbers = np.empty(stop - start, np.float32)
    for chunk in range(start // CHUNK, -(-stop // CHUNK)):
        begin, end = max(start, chunk * CHUNK), min(stop, (chunk + 1) * CHUNK)
        generator = np.random.default_rng([chunk, *key])
        drawn = generator.standard_normal(end - chunk * CHUNK, dtype=np.float32)
        numbers[begin - start : end - start] = drawn[begin - chunk * CHUNK :]
    return numbers
