"""Llama 3's scaling of the rotation: GGUF has factors in a tensor, transformers four numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptkit.plugin import RunError, UsageError
from gptkit_gguf.header import Header
from gptkit_gguf.tensors import read_tensor

NAME = "rope_freqs.weight"
LOW, HIGH = 1.0, 4.0
"""The low_freq_factor and the high_freq_factor of all of Meta's models."""
TOLERANCE = 1e-4  # relative, of factors that were computed in float32


def factors(scaling: Mapping[str, Any], theta: float, head_dim: int) -> NDArray[np.float32]:
    """What each frequency is divided by, (head_dim / 2,), as Llama 3.1 was trained.

    Between the wavelengths original / high and original / low it goes from 1 to `factor`, evenly
    in the frequency's own scale.
    """
    original = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    factors_: NDArray[np.float64] = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    return factors_.astype(np.float32)


def scaling_of(header: Header, theta: float, head_dim: int, original: int) -> dict[str, Any]:
    """The rope_scaling of a config.json that gives the factors of a file.

    Args:
        header: of a file with the tensor.
        theta: the base of the frequencies.
        head_dim: the size of a head.
        original: the length of context that the model was trained with at first.

    Raises:
        UsageError: no such scaling gives these factors.
    """
    place = header.tensors[NAME]
    if place.shape != (head_dim // 2,):
        raise RunError(f"{header.path}: damaged: {NAME} has the shape {list(place.shape)}")
    found = read_tensor(header.path, place)
    scaling = {
        "rope_type": "llama3",
        "factor": float(found.max()),
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": original,
    }
    if not np.allclose(found, factors(scaling, theta, head_dim), rtol=TOLERANCE, atol=0):
        raise UsageError(
            f"{header.path}: the factors in {NAME} are not those of Llama 3: not supported"
        )
    return scaling
