"""Reads an image file as a small square of RGB bytes. Imports no torch."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[np.uint8]
"""Red, green and blue in the last dimension."""

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # not EPS, which is a program
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
            with Image.open(path, formats=FORMATS) as image:
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


def _plain(image: Image.Image) -> Image.Image:
    """The same image in RGB, or in RGBA if parts of it are transparent."""
    if image.mode.startswith("I"):  # 16-bit greyscale, which convert() would clip to white
        high = np.asarray(image).clip(0, (1 << 16) - 1) >> 8
        image = Image.fromarray(high.astype(np.uint8))
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    if isinstance(error, MemoryError):
        return "too large for the memory of this machine"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
