"""The nearest colour of a palette. Imports no torch."""

import numpy as np
from numpy.typing import NDArray

from gptkit_cifar10.picture import Pixels

MOST_DISTANCES = 1 << 22  # in memory at a time, 4 bytes each
ALL_COLORS = 1 << 24
UNKNOWN = (1 << 16) - 1  # marks a colour not yet looked up; no palette is large enough for this id


def nearest(pixels: Pixels, palette: Pixels) -> NDArray[np.uint16]:
    """Index of the nearest palette colour by squared distance in RGB; the first of equal ones.

    Args:
        pixels: (N, 3).
        palette: (K, 3).

    Returns:
        Ids (N,). Distances are whole numbers below 2**24, so float32 holds them exactly.
    """
    colors = palette.astype(np.float32)
    squares, doubled = (colors**2).sum(1), -2 * colors.T
    rows = max(1, MOST_DISTANCES // len(colors))
    ids = np.empty(len(pixels), np.uint16)
    for first in range(0, len(pixels), rows):
        distances = pixels[first : first + rows].astype(np.float32) @ doubled  # (rows, K)
        distances += squares  # the pixel's own square is the same for every colour
        ids[first : first + rows] = distances.argmin(1)
    return ids


class Quantizer:
    """`nearest`, remembering the result for every colour in a table of 32 MB.

    Args:
        palette: (K, 3), fewer than 65,535 colours.
    """

    def __init__(self, palette: Pixels) -> None:
        self._palette = palette
        self._ids = np.full(ALL_COLORS, UNKNOWN, np.uint16)

    def __call__(self, pixels: Pixels) -> NDArray[np.uint16]:
        """Ids (N,) of pixels (N, 3)."""
        codes = to_codes(pixels)
        new = np.unique(codes[self._ids[codes] == UNKNOWN])
        self._ids[new] = nearest(from_codes(new), self._palette)
        return self._ids[codes]


def to_codes(pixels: Pixels) -> NDArray[np.uint32]:
    """Colours (N, 3) as numbers 0xRRGGBB (N,)."""
    red, green, blue = pixels.astype(np.uint32).T
    codes: NDArray[np.uint32] = red << 16 | green << 8 | blue
    return codes


def from_codes(codes: NDArray[np.uint32]) -> Pixels:
    """Numbers 0xRRGGBB (N,) as colours (N, 3)."""
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1).astype(np.uint8)
