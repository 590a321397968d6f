"""The tensors of a GGUF file: read, and dequantised, when they are asked for."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from gguf.quants import dequantize
from numpy.typing import NDArray
from torch import Tensor

from gptkit.plugin import RunError, UsageError, open_file
from gptkit_gguf.header import Header, TensorPlace
from gptkit_gguf.names import Place

CHUNK = 1 << 22  # bytes that are dequantised at a time


def read_tensor(path: Path, place: TensorPlace) -> NDArray[np.float32]:
    """A tensor in float32, which takes hardly more memory than the result.

    Raises:
        UsageError: the file cannot be read.
        RunError: the file has become shorter.
    """
    result = np.empty(place.shape, np.float32)
    rows = result.reshape(-1, place.shape[-1])
    row_size = place.size // len(rows)
    step = max(1, CHUNK // row_size)
    try:
        with open_file(path) as file:
            file.seek(place.start)
            for first in range(0, len(rows), step):
                part = rows[first : first + step]
                contents = file.read(len(part) * row_size)
                if len(contents) < len(part) * row_size:
                    raise RunError(f"{path}: the file became shorter while it was read")
                packed = np.frombuffer(contents, np.uint8).reshape(len(part), row_size)
                with np.errstate(all="ignore"):  # whoever uses the result sees what is not finite
                    part[:] = dequantize(packed, place.kind)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    return result


class HfTensors(Mapping[str, Tensor]):
    """The tensors of a GGUF file under transformers' names, each read when it is asked for."""

    def __init__(self, header: Header, places: Mapping[str, Place], *, pairs: bool = False) -> None:
        """Take them from a file.

        Args:
            header: of the file.
            places: where the tensors are, by their names in transformers.
            pairs: leave rows that llama.cpp rotates in pairs as they are.
        """
        self.header, self.places, self.pairs = header, places, pairs

    def __getitem__(self, name: str) -> Tensor:
        """A tensor, float32."""
        place = self.places[name]
        found = read_tensor(self.header.path, self.header.tensors[place.name])
        return torch.from_numpy(place.to_hf(found, pairs=self.pairs))

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)
