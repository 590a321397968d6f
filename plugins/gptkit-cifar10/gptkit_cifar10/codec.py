"""PixelCodec: an image as a stream of colours, row by row. Imports no torch."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from gptkit.codec import ImageCodec, PromptError
from gptkit_cifar10.grid import from_png, half_blocks, halved, in_rows, tile, to_png
from gptkit_cifar10.palette import nearest
from gptkit_cifar10.picture import PictureError, Pixels, read_picture

GREY = 128  # for values without a token
SHOWN = 128  # smallest side of a PNG file in pixels, so that a small image can be seen
ONE_ROW = 6  # up to so many completions are put into one row
MOST_COLUMNS = 16  # up to so many classes have a column each
MOST_TOKENS = 1 << 16
Byte = Annotated[int, Field(ge=0, le=255)]


class PixelCodec(ImageCodec):
    """A start token, then the pixels row by row, each a colour of the palette.

    Without a palette each pixel is three tokens: red, green and blue. The ids of the colours come
    first, then those of the start tokens: one for all images, or one per class.
    """

    contract = 1

    size: PositiveInt
    """Pixels a side."""
    palette: tuple[tuple[Byte, Byte, Byte], ...] = ()
    """The colours; empty for three tokens per pixel."""

    @model_validator(mode="after")
    def _check(self) -> "PixelCodec":
        if self.vocab_size > MOST_TOKENS:
            raise ValueError(f"should have at most {MOST_TOKENS:,} tokens, got {self.vocab_size:,}")
        return self

    @property
    def first_start(self) -> int:
        """Id of the first start token, which is the number of colour ids."""
        return len(self.palette) or 256

    @property
    def vocab_size(self) -> int:
        """How many different tokens there are."""
        return self.first_start + max(1, len(self.classes))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns, and tokens of a pixel."""
        return self.size, self.size, 1 if self.palette else 3

    @property
    def width(self) -> int:
        """Pixels in a row."""
        return self.size

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.size

    @property
    def colors(self) -> tuple[tuple[int, int, int], ...]:
        """The palette."""
        return self.palette

    @cached_property
    def _colors(self) -> Pixels:
        return np.array(self.palette, np.uint8)

    def encode(self, prompt: str) -> list[int]:
        """The start token, and the pixels of an image file.

        The image is turned upright, its transparent parts become white, its central square is
        resized with antialiasing, and each pixel takes the nearest colour of the palette.

        Args:
            prompt: path of an image file; "" for none.

        Returns:
            The start token, that of the first class where there are classes; then all pixels.

        Raises:
            PromptError: the file is missing, or is not a readable image.
        """
        pixels = self._read(prompt).reshape(-1, 3) if prompt else np.empty((0, 3), np.uint8)
        ids = nearest(pixels, self._colors) if self.palette else pixels.reshape(-1)
        return [self.first_start, *ids.tolist()]

    def decode(self, tokens: Sequence[int]) -> bytes:
        """An image as a PNG file; `decode_array` says how tokens become pixels.

        Every pixel is magnified by a whole factor, so that an image is at least 128 pixels wide.
        """
        return to_png(self.decode_array(tokens), scale=self.scale)

    def decode_array(self, tokens: Sequence[int]) -> Pixels:
        """An image as (size, size, 3).

        Missing pixels are mid-grey, and so is a start token between pixels, which a model can
        sample. Tokens after a complete image are ignored.
        """
        pixels = tokens[1:] if len(tokens) and tokens[0] >= self.first_start else tokens
        ids = np.full(self.length - 1, self.first_start, np.int64)
        ids[: len(pixels)] = pixels[: len(ids)]
        colors = self._colors if self.palette else np.arange(256, dtype=np.uint8)[:, None]
        known = np.vstack([colors, np.full_like(colors[:1], GREY)])
        picture: Pixels = known[ids.clip(max=self.first_start)]
        return picture.reshape(self.size, self.size, 3)

    @property
    def scale(self) -> int:
        """The factor by which an image is magnified in a PNG file."""
        return -(-SHOWN // self.size)

    def sheet(self, samples: Sequence[Sequence[int]], *, prompt: str = "", kept: int = 0) -> bytes:
        """Images side by side in a PNG file, magnified as by `decode`, a thin line between them.

        Without a prompt they form about a square; if all classes are drawn in turn, each has a
        column. With a prompt, its kept part is on the left, then
        come the samples, and on the right is the whole prompt as the model sees it.

        Args:
            samples: token ids, each with the prompt's at its beginning.
            prompt: path of the image file that they continue; "" for none.
            kept: how many tokens of every sample are the prompt's.

        Raises:
            PromptError: the prompt is missing, or is not a readable image.
        """
        pictures = [self.decode_array(sample) for sample in samples]
        alone = prompt and len(pictures) <= ONE_ROW
        columns = len(pictures) if alone else self._columns(samples)
        rows = in_rows(pictures, columns=columns)
        if prompt:
            given = self.decode_array(samples[0][:kept])
            whole = self.decode_array(self.encode(prompt))
            width = len(rows[0])
            rows = [[None, *row, *[None] * (width - len(row)), None] for row in rows]
            rows[0][0], rows[0][-1] = given, whole
        return to_png(tile(rows), scale=self.scale)

    def preview(self, contents: bytes, *, width: int) -> str | None:
        """A PNG file from `decode` or `sheet` as half blocks in 24-bit colours.

        A sheet that is too wide is shown in two halves; one for which that is too wide is reduced.
        """
        if width < 1:
            return None
        try:
            pixels = from_png(contents, scale=self.scale)
        except OSError:
            return None
        return half_blocks(halved(pixels, size=self.size, width=width), width=width)

    def _columns(self, samples: Sequence[Sequence[int]]) -> int | None:
        """The number of classes if samples of a few classes come in turn, more than once."""
        count = len(self.classes)
        if not 1 < count <= min(MOST_COLUMNS, len(samples)):
            return None
        drawn = [sample[0] - self.first_start for sample in samples]
        return count if drawn == [i % count for i in range(len(samples))] else None

    def _read(self, prompt: str) -> Pixels:
        try:
            return read_picture(Path(prompt), self.size)
        except PictureError as error:
            raise PromptError(
                f"{prompt}: cannot be read: {error}", hint="a prompt is the path of an image file"
            ) from error
