"""TokenFile: windows of a token stream in a file that may be larger than memory."""

import mmap
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gptkit.data.split import Split
from gptkit.errors import PluginError

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
        self._window = np.arange(block_size + 1)

    def __len__(self) -> int:
        return max(0, self.stop - self.start - self.stride)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        # Mapped anew for every batch, so that resident memory does not grow.
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mapped, "madvise"):  # random access: read-ahead would be wasted
            mapped.madvise(mmap.MADV_RANDOM)
        tokens = np.frombuffer(mapped, self.dtype, count=self.stop)
        starts = indices.numpy() + self.start
        windows = torch.from_numpy(tokens[starts[:, None] + self._window].astype(np.int64))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
