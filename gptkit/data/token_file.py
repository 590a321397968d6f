"""TokenFile: windows of a token stream in a file that may be larger than memory."""

import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from gptkit.data.split import Split
from gptkit.errors import CacheError, PluginError
from gptkit.files import open_file

DTYPES = ("uint8", "uint16", "uint32")


class TokenFile(Split):
    """A part of a token stream in a file; a batch reads only its own windows.

    Args:
        path: raw tokens without a header.
        dtype: the type of a stored token, "uint8", "uint16" or "uint32".
        start: first token of the split.
        stop: token after the last one of the split.
        block_size: tokens per window; every target is the token after its input.

    Raises:
        PluginError: the tokens have another type.
    """

    def __init__(
        self, path: Path, dtype: str, *, start: int = 0, stop: int, block_size: int
    ) -> None:
        if dtype not in DTYPES:
            raise PluginError(
                f'{path}: TokenFile cannot read tokens of the type "{dtype}"',
                hint=f"write them as {', '.join(DTYPES)}: the smallest that holds every id",
            )
        self.path, self.dtype, self.start, self.stop = path, np.dtype(dtype), start, stop
        self.stride = block_size

    def __len__(self) -> int:
        return max(0, self.stop - self.start - self.stride)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        rows = np.empty((len(indices), self.stride + 1), self.dtype)
        starts = (indices + self.start).tolist()
        read_tokens(self.path, zip(starts, rows, strict=True), count=self.stop)
        windows = torch.from_numpy(rows.astype(np.int64))
        # `contiguous` does not copy a single window: y would share the memory of x.
        return windows[:, :-1].contiguous(), windows[:, 1:].clone()


def read_tokens(path: Path, wanted: Iterable[tuple[int, NDArray[Any]]], *, count: int) -> None:
    """Fill arrays with tokens of a file.

    Args:
        path: raw tokens without a header.
        wanted: where in the file an array begins, in tokens, and the array, of the file's type.
        count: how many tokens may be read; the file must have them.

    Raises:
        CacheError: the file is gone, or has become shorter.
        IndexError: an array is not within the `count` tokens.
    """
    with _reading(path), open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        for first, tokens in wanted:
            if not 0 <= first <= count - len(tokens):
                raise IndexError(f"tokens {first} to {first + len(tokens)} of {count} in {path}")
            file.seek(first * tokens.itemsize)
            if count * tokens.itemsize > size or file.readinto(tokens.data) < tokens.nbytes:
                raise EOFError


def map_tokens(path: Path, dtype: DTypeLike, *, count: int = -1) -> NDArray[Any]:
    """The tokens in a file as an array that reads only what is looked at.

    Map them anew for every batch, so that resident memory does not grow.

    Args:
        path: raw tokens without a header.
        dtype: the type of a stored token.
        count: how many tokens; -1 for all of them.

    Raises:
        CacheError: the file is gone, or has become shorter.
    """
    with _reading(path), open_file(path) as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        tokens = np.frombuffer(mapped, dtype, count=count)
    if hasattr(mapped, "madvise"):  # random access: read-ahead would be wasted
        mapped.madvise(mmap.MADV_RANDOM)
    return tokens


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file whose tokens are gone."""
    try:
        yield
    except (OSError, ValueError, EOFError) as error:
        raise CacheError(
            f"{path}: the encoded data cannot be read any more: "
            f"{getattr(error, 'strerror', None) or 'the file is shorter than it was'}",
            hint="gptkit encodes it again when it loads the data set the next time",
        ) from error
