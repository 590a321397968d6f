"""Reads an image file as a small square of RGB bytes. Imports no torch."""

import warnings
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from gptkit.codec import open_file

Pixels = NDArray[np.uint8]
"""Red, green and blue in the last dimension."""

PROGRAMS = {"EPS"}  # a picture that is run
STUBS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow knows their names, but cannot read them
MOST_PIXELS = 64_000_000  # of a file; 192 MB of memory in RGB
TOO_MANY = f"has more than {MOST_PIXELS:,} pixels"
BACKGROUND = (255, 255, 255)  # of transparent pixels
DRAFT = 4  # a large JPEG is decoded at a reduced size, at least this many times the wanted one


class PictureError(Exception):
    """A file cannot be read as an image; the message is the reason."""


def read_picture(path: Path, size: int) -> Pixels:
    """An image file of any kind and mode as (size, size, 3): upright, its central square.

    Transparent pixels become white.

    Raises:
        PictureError: the file is missing, damaged or not an image, or has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images or odd metadata, which are read
            with open_file(path) as file, Image.open(file, formats=_formats()) as image:
                _check_size(image)
                image.draft(None, (DRAFT * size, DRAFT * size))
                ImageOps.exif_transpose(image, in_place=True)
                return fit(image, size)
    except Exception as error:  # decoders fail in many ways on damaged data
        raise PictureError(_reason(error)) from error


def fit(image: Image.Image, size: int) -> Pixels:
    """The central square of an image, resized with antialiasing to (size, size, 3)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    smooth = Image.Resampling.BOX if side % size == 0 else Image.Resampling.LANCZOS
    square = (left, top, left + side, top + side)
    small = _plain(image).resize((size, size), smooth, box=square)
    if small.mode == "RGBA":
        background = Image.new("RGBA", small.size, BACKGROUND)
        small = Image.alpha_composite(background, small).convert("RGB")
    return np.asarray(small)


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise PictureError(TOO_MANY)


def _plain(image: Image.Image) -> Image.Image:
    """The same image in RGB, or in RGBA if parts of it are transparent."""
    if image.mode.startswith(("I", "F")):  # which convert() would clip to white
        image = Image.fromarray(_bytes(np.asarray(image)))
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _bytes(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Greyscale of 16 bits, or of 0 to 1, 255 or 65,535 in floats, as one byte per pixel."""
    low, high = grey.min(), grey.max()
    if not 0 <= low <= high < 1 << 16:  # also true for NaN
        raise PictureError(f"grey values from {low:g} to {high:g}; 0 to 1, 255 or 65,535 are read")
    if np.issubdtype(grey.dtype, np.integer) or high > 255:
        return (grey.astype(np.int64) >> 8).astype(np.uint8)
    scaled: NDArray[np.uint8] = np.rint(grey * (255 if high <= 1 else 1)).astype(np.uint8)
    return scaled


@cache
def _formats() -> tuple[str, ...]:
    """All that Pillow reads."""
    Image.init()
    return tuple(sorted(Image.OPEN.keys() - PROGRAMS - STUBS))


@cache
def endings() -> frozenset[str]:
    """The name endings of all that Pillow reads."""
    known = Image.registered_extensions()
    return frozenset(ending for ending, name in known.items() if name in _formats())


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return TOO_MANY
    if isinstance(error, MemoryError):
        return "too large for the memory of this machine"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
