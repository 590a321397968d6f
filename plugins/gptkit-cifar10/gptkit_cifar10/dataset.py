"""Cifar10: images as streams of pixels: CIFAR-10, your own folder, or shapes."""

from typing import Literal

import numpy as np
from pydantic import Field, NonNegativeInt, field_validator

from gptkit.plugin import Data, Dataset, LocalPath
from gptkit_cifar10.archive import Archive
from gptkit_cifar10.codec import PixelCodec
from gptkit_cifar10.image_source import ImageSource
from gptkit_cifar10.images import open_folder
from gptkit_cifar10.items import PixelItems
from gptkit_cifar10.shapes import Shapes
from gptkit_cifar10.tokens import Encoded, encoded

MOST_COLORS = 4096


class Cifar10(Dataset):
    """Images as a start token and one token per pixel, row by row from the top."""

    contract = 1

    source: Literal["cifar10", "shapes"] = "cifar10"
    """CIFAR-10, a download of 170 MB, or shapes in ten classes, drawn without a download."""
    path: LocalPath | None = None
    """A folder of images, train/CLASS/* and val/CLASS/*, or CLASS/*; used instead of source."""
    size: int = Field(default=32, ge=1, le=1024)
    """Pixels a side; each image is cropped to its central square and resized."""
    colors: int | Literal["rgb"] = 512
    """Colours in the palette, 2 to 4,096; "rgb" keeps all colours, in three tokens per pixel."""
    class_conditional: bool = False
    """Give every class its own start token, so that you can sample from one class."""
    flip: bool = False
    """Train on mirror images too; each image then counts as two items."""
    val_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of every class for validation, if path has no train folder."""
    seed: NonNegativeInt = 0
    """Seed of the palette, of the split by val_fraction, and of the shapes."""

    @field_validator("colors")
    @classmethod
    def _check_colors(cls, colors: int | Literal["rgb"]) -> int | Literal["rgb"]:
        if colors != "rgb" and not 2 <= colors <= MOST_COLORS:
            raise ValueError(f'should be 2 to {MOST_COLORS:,}, or "rgb"')
        return colors

    def load(self) -> Data:
        """Encode the images, unless they are in the cache.

        Raises:
            DataError: images are missing or cannot be read.
            DownloadError: CIFAR-10 cannot be downloaded.
        """
        source = self._source()
        images = encoded(source, size=self.size, colors=self.colors, seed=self.seed)
        names = source.classes if self.class_conditional else ()
        codec = PixelCodec(size=self.size, palette=images.palette, classes=names)
        return Data(
            train=self._split(images, codec, training=True),
            val=self._split(images, codec, training=False),
            codec=codec,
            vocab_size=codec.vocab_size,
            block_size=codec.length - 1,
            sha256=source.sha256,
            classes=source.classes,
        )

    def _source(self) -> ImageSource:
        if self.path:
            return open_folder(self.path, val_fraction=self.val_fraction, seed=self.seed)
        return Shapes(self.seed) if self.source == "shapes" else Archive()

    def _split(self, images: Encoded, codec: PixelCodec, *, training: bool) -> PixelItems:
        first, stop = (0, images.train) if training else (images.train, images.train + images.val)
        labels = images.labels()[first:stop]
        offsets = labels if self.class_conditional else np.zeros_like(labels)
        return PixelItems(
            images.tokens,
            codec.shape,
            first=first,
            labels=labels,
            starts=codec.first_start + offsets,
            flip=self.flip and training,
        )
