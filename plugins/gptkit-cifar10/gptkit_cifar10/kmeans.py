"""A palette for images: all of their colours if these are few, otherwise by k-means."""

import numpy as np
from numpy.typing import NDArray

from gptkit_cifar10.palette import ALL_COLORS, from_codes, to_codes
from gptkit_cifar10.picture import Pixels

SUBSET = 100_000  # pixels given to k-means, which takes five seconds for 512 colours
ROUNDS = 20  # of k-means; more change the error by less than one percent
CHUNK = 1 << 18  # pixels at a time
LUMINANCE = (299, 587, 114)  # per mille; integers, so that the order is the same on every machine


def fit_palette(pixels: Pixels, colors: int, *, seed: int) -> Pixels:
    """At most `colors` different colours for all pixels, sorted from dark to light.

    If the pixels have no more colours than that, all are kept. The result is a function of the
    arguments alone.

    Args:
        pixels: (N, 3), possibly a memory map.
        colors: the size of the palette.
        seed: chooses the pixels given to k-means, and its start.
    """
    few = _few(pixels, colors)
    palette = _cluster(_subset(pixels, seed), colors, seed) if few is None else few
    return _sorted(palette)


def _few(pixels: Pixels, most: int) -> Pixels | None:
    """All different colours, or None if there are more than `most`."""
    seen = np.zeros(ALL_COLORS, bool)
    for first in range(0, len(pixels), CHUNK):
        seen[to_codes(pixels[first : first + CHUNK])] = True
        if np.count_nonzero(seen) > most:
            return None
    return from_codes(np.flatnonzero(seen).astype(np.uint32))


def _subset(pixels: Pixels, seed: int) -> Pixels:
    if len(pixels) <= SUBSET:
        return np.asarray(pixels)
    # A random pixel from each of SUBSET equal stretches, so that memory does not grow with N.
    places = np.arange(SUBSET) + np.random.default_rng(seed).random(SUBSET)
    return np.asarray(pixels[(places * (len(pixels) / SUBSET)).astype(np.int64)])


def _cluster(pixels: Pixels, colors: int, seed: int) -> Pixels:
    # Imported here: they take a second, and the palette is usually in the cache.
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    codes, counts = np.unique(to_codes(pixels), return_counts=True)
    kmeans = KMeans(
        min(colors, len(codes)), n_init=1, max_iter=ROUNDS, random_state=seed % (1 << 32)
    )
    # Several threads add up in an order that changes from run to run, and so does the result.
    with threadpool_limits(limits=1):
        kmeans.fit(from_codes(codes).astype(np.float64), sample_weight=counts)
    centers: NDArray[np.float64] = kmeans.cluster_centers_
    return np.unique(centers.round().clip(0, 255).astype(np.uint8), axis=0)


def _sorted(palette: Pixels) -> Pixels:
    return palette[np.lexsort([*palette.T[::-1], palette @ np.array(LUMINANCE)])]
