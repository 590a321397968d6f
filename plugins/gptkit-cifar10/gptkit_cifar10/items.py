"""PixelItems: images as training items, read from a memory map."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gptkit.plugin import Split, map_tokens
from gptkit_cifar10.image_source import Labels


class PixelItems(Split):
    """Complete images, each after its start token.

    Args:
        path: raw uint16 tokens, `shape[0] * shape[1] * shape[2]` per image.
        shape: rows, columns, and tokens of a pixel.
        first: the split's first image in the file.
        labels: the classes of the split's images.
        starts: their start tokens.
        flip: have every image twice: item 2 * n is image n, item 2 * n + 1 its mirror image.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        *,
        first: int,
        labels: Labels,
        starts: Labels,
        flip: bool = False,
    ) -> None:
        self.path, self.shape, self.first, self.starts = path, shape, first, starts
        self.copies = 2 if flip else 1
        self.labels = torch.from_numpy(labels.repeat(self.copies))

    def __len__(self) -> int:
        return len(self.starts) * self.copies

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        tokens = map_tokens(self.path, np.uint16).reshape(-1, *self.shape)
        images, mirrored = np.divmod(indices.numpy(), self.copies)
        pixels = tokens[self.first + images].astype(np.int64)
        pixels[mirrored == 1] = pixels[mirrored == 1, :, ::-1]
        y = pixels.reshape(len(images), -1)
        x = np.concatenate([self.starts[images, None], y[:, :-1]], axis=1)
        return torch.from_numpy(x), torch.from_numpy(y)
