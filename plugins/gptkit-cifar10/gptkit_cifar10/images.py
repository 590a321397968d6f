"""A folder of images in torchvision's ImageFolder layout: one folder per class."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gptkit.plugin import DataError
from gptkit_cifar10.layout import Item, split_items
from gptkit_cifar10.picture import PictureError, Pixels, read_picture
from gptkit_cifar10.source import Chunk

CHUNK_BYTES = 1 << 24  # of pixels, decoded before they are handed on
MOST_NAMED = 5  # unreadable images


@dataclass(frozen=True)
class Folder:
    """Images of the user's own as a source."""

