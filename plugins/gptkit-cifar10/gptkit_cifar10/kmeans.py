"""A palette for images: the colours they have, or as many as wanted by k-means."""

import numpy as np
from numpy.typing import NDArray

from gptkit_cifar10.palette import ALL_COLORS, from_codes, to_codes
from gptkit_cifar10.picture import Pixels

SUBSET = 100_000  # pixels that k-means sees: five seconds for 512 colours
ROUNDS = 20  # more change the error by less than one percent
CHUNK = 1 << 18  # pixels looked at in one go
LUMINANCE = (299, 587, 114)  # per mille; whole numbers sort alike everywhere


def fit_palette(pixels: Pixels, colors: int, *, seed: int) -> Pixels:
    """At most `colors` different colours that stand for all pixels, sorted from dark to light.

    Pixels of no more colours than that keep them all. The result depends on nothing but the
    arguments.

    Args:
        pixels: (N, 3), possibly a memory map.
        colors: how many are wanted.
        seed: chooses the pixels that k-means sees and its start.
    """
    few = _few(pixels, colors)
    palette = _cluster(_subset(pixels, seed), colors, seed) if few is None else few
    return _sorted(palette)


def _few(pixels: Pixels, most: int) -> Pixels | None:
    """All different colours, or None where there are more than `most`."""
    seen = np.zeros(ALL_COLORS, bool)
    for first in range(0, len(pixels), CHUNK):
        seen[to_codes(pixels[first : first + CHUNK])] = True
        if np.count_nonzero(seen) > most:
            return None
    return from_codes(np.flatnonzero(seen).astype(np.uint32))


def _subset(pixels: Pixels, seed: int) -> Pixels:
    if len(pixels) <= SUBSET:
        return np.asarray(pixels)
    # One from each of as many equal stretches: no list of all the numbers is ever made.
    places = np.arange(SUBSET) + np.random.default_rng(seed).random(SUBSET)
    return np.asarray(pixels[(places * (len(pixels) / SUBSET)).astype(np.int64)])


def _cluster(pixels: Pixels, colors: int, seed: int) -> Pixels:
    # Here alone: they take a second to import, and the cache mostly has the palette.
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    codes, counts = np.unique(to_codes(pixels), return_counts=True)
    kmeans = KMeans(
        min(colors, len(codes)), n_init=1, max_iter=ROUNDS, random_state=seed % (1 << 32)
    )
    # Several threads would add up the same numbers in an order that changes from run to run.
    with threadpool_limits(limits=1):
        kmeans.fit(from_codes(codes).astype(np.float64), sample_weight=counts)
    centers: NDArray[np.float64] = kmeans.cluster_centers_
    return np.unique(centers.round().clip(0, 255).astype(np.uint8), axis=0)


def _sorted(palette: Pixels) -> Pixels:
    return palette[np.lexsort([*palette.T[::-1], palette @ np.array(LUMINANCE)])]
