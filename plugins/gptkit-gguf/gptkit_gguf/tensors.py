"""The tensors of a GGUF file: read, and dequantised, when they are asked for."""

from pathlib import Path

import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from gptkit.plugin import RunError, UsageError, open_file
from gptkit_gguf.header import TensorPlace

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
                part[:] = dequantize(packed, place.kind)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    return result
