"""Pictures side by side, as PNG files and as text for a terminal. Imports no torch."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from gptkit_cifar10.picture import Pixels

GAP = 255  # white lines between pictures, one pixel wide before magnification
UPPER_HALF = "\N{UPPER HALF BLOCK}"
WIDEST = 64  # columns up to which a small picture is magnified in a terminal


def tile(rows: Sequence[Sequence[Pixels | None]]) -> Pixels:
    """Pictures of one size in rows, a gap of one pixel around each; None is an empty place."""
    size = next(len(picture) for row in rows for picture in row if picture is not None)
    columns, step = max(map(len, rows)), size + 1
    sheet = np.full((len(rows) * step + 1, columns * step + 1, 3), GAP, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            if picture is not None:
                top, left = i * step + 1, j * step + 1
                sheet[top : top + size, left : left + size] = picture
    return sheet


def in_rows(pictures: Sequence[Pixels], *, columns: int | None = None) -> list[list[Pixels | None]]:
    """Pictures in rows of that length; by default they form about a square."""
    columns = columns or int(np.ceil(np.sqrt(len(pictures))))
    return [list(pictures[i : i + columns]) for i in range(0, len(pictures), columns)]


def halved(sheet: Pixels, *, size: int, width: int) -> Pixels:
    """A sheet that is too wide, as two halves one below the other; as it is if these do not fit.

    Args:
        sheet: from `tile`, of pictures of this size.
        size: pixels per side of a picture.
        width: how wide it may be.
    """
    step = size + 1
    columns = sheet.shape[1] // step
    left = -(-columns // 2) * step + 1
    if sheet.shape[1] <= width or left > width or columns < 2:
        return sheet
    lower = np.full((len(sheet) - 1, left, 3), GAP, np.uint8)
    lower[:, : sheet.shape[1] - left + 1] = sheet[1:, left - 1 :]
    return np.vstack([sheet[:, :left], lower])


def to_png(pixels: Pixels, *, scale: int) -> bytes:
    """A PNG file in which every pixel is a block of `scale` by `scale`."""
    file = io.BytesIO()
    large = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    Image.fromarray(large).save(file, "PNG")
    return file.getvalue()


def from_png(contents: bytes, *, scale: int) -> Pixels:
    """The pixels that `to_png` was given.

    Raises:
        OSError: the contents are not an image.
    """
    with Image.open(io.BytesIO(contents)) as image:
        return np.asarray(image.convert("RGB"))[::scale, ::scale]


def half_blocks(pixels: Pixels, *, width: int) -> str:
    """A picture in 24-bit ANSI colours, two pixels per character, at most `width` columns wide.

    A small picture is magnified by a whole factor; one that is too wide is reduced.
    """
    height, columns = pixels.shape[:2]
    if columns > width:
        shape = (width, max(1, round(height * width / columns)))
        pixels = np.asarray(Image.fromarray(pixels).resize(shape, Image.Resampling.BOX))
    factor = max(1, min(width, WIDEST) // columns)
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    lines = [_line(pixels[i : i + 2]) for i in range(0, len(pixels), 2)]
    return "\n".join(lines)


def _line(pair: Pixels) -> str:
    """One or two rows of pixels as one line of text."""
    upper = [f"\x1b[38;2;{r};{g};{b}m" for r, g, b in pair[0].tolist()]
    lower = [f"\x1b[48;2;{r};{g};{b}m" for r, g, b in pair[-1].tolist()]
    if len(pair) < 2:
        lower = ["\x1b[49m"] * len(upper)  # the terminal's own background below the last row
    cells = (f"{u}{d}{UPPER_HALF}" for u, d in zip(upper, lower, strict=True))
    return "".join(cells) + "\x1b[0m"
