"""Files that are on the disk when a function returns, so that a power cut cannot take them."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def sync_folder(folder: Path) -> None:
    """Wait until the names of a folder's files are on the disk."""
    with suppress(OSError):  # a system that opens no folders needs no such thing
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_synced(path: Path, values: NDArray[Any]) -> None:
    """Write an array to a file, and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(np.ascontiguousarray(values).data)
        file.flush()
        os.fsync(file.fileno())
