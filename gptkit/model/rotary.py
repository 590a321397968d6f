"""The angles of rotary positions (Su et al. 2021), for torch and for ONNX. Imports no torch."""

import numpy as np
from numpy.typing import NDArray

from gptkit.recipe.options import GPTConfig


def angles(config: GPTConfig) -> NDArray[np.float64]:
    """Angles in radians of every position and pair of numbers, (block_size, hs / 2)."""
    return np.outer(np.arange(config.block_size), frequencies(config))


def frequencies(config: GPTConfig) -> NDArray[np.float64]:
    """Radians per token of every pair of numbers in a head, (hs / 2,)."""
    half = config.head_size // 2
    plain = config.rope_theta ** (-np.arange(half) / half)
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    turns = plain * scaling.original_max_position_embeddings / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return plain * (kept + (1 - kept) / scaling.factor)
