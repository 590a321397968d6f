"""PixelCodec: an image as a stream of colours, row by row. Imports no torch."""

import difflib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from gptkit.codec import Codec, PromptError
from gptkit_cifar10.grid import from_png, half_blocks, square, tile, to_png
from gptkit_cifar10.palette import nearest
from gptkit_cifar10.picture import PictureError, Pixels, read_picture

GREY = 128  # for values without a token
SHOWN = 128  # smallest side of a PNG file in pixels, so that a small image can be seen
ONE_ROW = 6  # up to so many completions are put into one row
MOST_TOKENS = 1 << 16
Byte = Annotated[int, Field(ge=0, le=255)]


class PixelCodec(Codec):
    """A start token, then the pixels row by row, each a colour of the palette.

    Without a palette each pixel is three tokens: red, green and blue. The ids of the colours come
    first, then those of the start tokens: one for all images, or one per class.
    """

    suffix: ClassVar[str] = ".png"
    temperature: ClassVar[float] = 1.0

    size: PositiveInt
    """Pixels a side."""
    palette: tuple[tuple[Byte, Byte, Byte], ...] = ()
    """The colours; empty for three tokens per pixel."""
    classes: tuple[str, ...] = ()
    """The classes, each with its own start token; empty for one start token for all images."""

    @model_validator(mode="after")
    def _check(self) -> "PixelCodec":
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes should have different names")
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
    def length(self) -> int:
        """Tokens of a whole image, with its start token."""
        return 1 + int(np.prod(self.shape))

    @property
    def starts(self) -> list[list[int]]:
        """The start token of every class, or the only one."""
        return [[token] for token in range(self.first_start, self.vocab_size)]

    @property
    def lossless(self) -> bool:
        """True without a palette: then every token is one dimension of the image."""
        return not self.palette

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

    def start(self, prompt: str, *, keep: float = 1.0, label: str | None = None) -> list[int]:
        """A start token, and the upper part of an image file.

        Args:
            prompt: path of an image file; "" for none.
            keep: share of the image to keep, from the top, 0 to 1; 0.5 is the upper half.
            label: the class whose start token to use; None for the first.

        Raises:
            PromptError: the image or the class does not exist, or `keep` is out of range.
        """
        start = self.first_start + (self._label(label) if label is not None else 0)
        if not 0 <= keep <= 1:  # also true for NaN
            raise PromptError(
                f"keep should be between 0 and 1, got {keep}", hint="0.5 keeps the upper half"
            )
        _, *pixels = self.encode(prompt)
        return [start, *pixels[: round(keep * len(pixels))]]

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

    def legend(self) -> dict[str, Any]:
        """The image's size, the colours by id, and the class of each start token."""
        colors = {"colors": self.palette} if self.palette else {"channels": 3}
        return {"width": self.size, "height": self.size, **colors, "classes": self.classes}

    @property
    def scale(self) -> int:
        """The factor by which an image is magnified in a PNG file."""
        return -(-SHOWN // self.size)

    def sheet(self, samples: Sequence[Sequence[int]], *, prompt: str = "", kept: int = 0) -> bytes:
        """Images side by side in a PNG file, magnified as by `decode`, a thin line between them.

        Without a prompt they form about a square. With a prompt, its kept part is on the left, then
        come the samples, and on the right is the whole prompt as the model sees it.

        Args:
            samples: token ids, each with the prompt's at its beginning.
            prompt: path of the image file that they continue; "" for none.
            kept: how many tokens of every sample are the prompt's.

        Raises:
            PromptError: the prompt is missing, or is not a readable image.
        """
        pictures = [self.decode_array(sample) for sample in samples]
        rows = [[*pictures]] if prompt and len(pictures) <= ONE_ROW else square(pictures)
        if prompt:
            given = self.decode_array(samples[0][:kept])
            whole = self.decode_array(self.encode(prompt))
            width = len(rows[0])
            rows = [[None, *row, *[None] * (width - len(row)), None] for row in rows]
            rows[0][0], rows[0][-1] = given, whole
        return to_png(tile(rows), scale=self.scale)

    def preview(self, contents: bytes, *, width: int) -> str | None:
        """A PNG file from `decode` or `sheet` as half blocks in 24-bit colours."""
        if width < 1:
            return None
        try:
            pixels = from_png(contents, scale=self.scale)
        except OSError:
            return None
        return half_blocks(pixels, width=width)

    def _read(self, prompt: str) -> Pixels:
        try:
            return read_picture(Path(prompt), self.size)
        except PictureError as error:
            raise PromptError(
                f"{prompt}: cannot be read: {error}", hint="a prompt is the path of an image file"
            ) from error

    def _label(self, name: str) -> int:
        if not self.classes:
            raise PromptError("this model knows no classes", hint="leave --class out")
        if name not in self.classes:
            near = difflib.get_close_matches(name, self.classes, n=1)
            advice = f'; did you mean "{near[0]}"?' if near else ""
            known = ", ".join(self.classes)
            raise PromptError(f'no class named "{name}"', hint=f"known: {known}{advice}")
        return self.classes.index(name)
