import json
import os
import subprocess
import sys

import numpy as np
import pytest

from gptkit_cifar10.kmeans import LUMINANCE, SUBSET, fit_palette
from gptkit_cifar10.palette import Quantizer, from_codes, nearest, to_codes


def colors(count: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 2, 512, 4096])
def test_the_nearest_colour_is_the_nearest(count: int) -> None:
    pixels, palette = colors(500), colors(count, seed=1)
    differences = pixels[:, None].astype(int) - palette[None].astype(int)
    expected = (differences**2).sum(2).argmin(1)
    assert np.array_equal(nearest(pixels, palette), expected)
    assert np.array_equal(Quantizer(palette)(pixels), expected)


def test_of_equally_near_colours_the_first_is_taken() -> None:
    palette = np.array([(0, 0, 0), (4, 0, 0), (0, 4, 0), (4, 0, 0)], np.uint8)
    assert nearest(np.array([(2, 0, 0), (2, 2, 0), (3, 0, 0)], np.uint8), palette).tolist() == [
        0,
        0,
        1,
    ]


def test_pieces_do_not_change_the_result() -> None:
    palette, pixels = colors(4096), colors(5000, seed=1)
    quantizer = Quantizer(palette)
    pieces = [quantizer(pixels[first : first + 700]) for first in range(0, 5000, 700)]
    assert np.array_equal(np.concatenate(pieces), nearest(pixels, palette))
    assert nearest(pixels[:0], palette).shape == (0,)


def test_codes_are_colours() -> None:
    assert to_codes(np.array([(1, 2, 3)], np.uint8)).tolist() == [0x010203]
    assert np.array_equal(from_codes(to_codes(colors(100))), colors(100))


def test_a_palette_is_a_function_of_pixels_and_seed() -> None:
    pixels = colors(SUBSET + 1000)
    palette = fit_palette(pixels, 16, seed=0)
    assert np.array_equal(fit_palette(pixels, 16, seed=0), palette)
    assert not np.array_equal(fit_palette(pixels, 16, seed=1), palette)
    assert (palette.shape, palette.dtype) == ((16, 3), np.uint8)


def test_a_palette_does_not_depend_on_the_number_of_threads() -> None:
    code = (
        "import numpy as np; from gptkit_cifar10.kmeans import fit_palette\n"
        "pixels = np.random.default_rng(0).integers(256, size=(30000, 3), dtype=np.uint8)\n"
        "print(fit_palette(pixels, 64, seed=0).tolist())"
    )
    palettes = []
    for threads in "12":
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"OMP_NUM_THREADS": threads},
            capture_output=True,
            check=True,
        )
        palettes.append(json.loads(result.stdout))
    assert palettes[0] == palettes[1]
    assert palettes[0] == fit_palette(colors(30000), 64, seed=0).tolist()


def test_a_palette_goes_from_dark_to_light() -> None:
    palette = fit_palette(colors(3000), 32, seed=0).astype(int)
    luminance = palette @ LUMINANCE
    assert (np.diff(luminance) >= 0).all()
    assert len(np.unique(palette, axis=0)) == 32


def test_few_colours_are_kept_as_they_are() -> None:
    own = np.array([(9, 9, 9), (200, 10, 10), (10, 10, 200)], np.uint8)
    pixels = own.repeat([1, 999_999, 500_000], axis=0)  # the first would hardly be in a sample
    palette = fit_palette(pixels, 3, seed=0)
    assert {*map(tuple, palette.tolist())} == {*map(tuple, own.tolist())}
    assert len(fit_palette(pixels, 512, seed=0)) == 3
    assert fit_palette(pixels[:1], 2, seed=0).tolist() == [[9, 9, 9]]


def test_the_palette_of_clusters_is_their_centres() -> None:
    centres = np.array([(20, 20, 20), (120, 20, 20), (20, 220, 20)])
    spread = np.random.default_rng(0).integers(-9, 10, size=(3000, 3, 3))
    palette = fit_palette((centres + spread).reshape(-1, 3).astype(np.uint8), 3, seed=0)
    assert np.abs(palette.astype(int) - centres).max() <= 1
