"""Safetensors files, written tensor by tensor by all ranks that hold rows of them.

The first rank makes a file with its header and its full size, then every rank writes its own rows
at their places. So no rank needs memory for more than one tensor. The bytes are those that
safetensors itself would write.
"""

import json
import math
import os
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptkit.contract.tensor_types import DTYPES
from gptkit.model.gpt import is_sharded
from gptkit.training.sharding import local_part

ALIGNMENT = 8  # bytes


def create(path: Path, tensors: Mapping[str, Tensor]) -> int:
    """Make a file for these tensors, still without their values; returns how many bytes they have.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    order = {dtype: place for place, dtype in enumerate(DTYPES)}
    ordered = sorted(tensors.items(), key=lambda item: (order[item[1].dtype], item[0]))
    stops = [*accumulate((_n_bytes(tensor) for _, tensor in ordered), initial=0)]
    header = {
        name: {
            "dtype": DTYPES[tensor.dtype],
            "shape": [*tensor.shape],
            "data_offsets": [start, stop],
        }
        for (name, tensor), start, stop in zip(ordered, stops, stops[1:], strict=False)
    }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + stops[-1])
    return stops[-1]


def fill(path: Path, tensors: Mapping[str, Tensor], *, first: bool) -> int:
    """Write what this rank holds of the tensors; returns how many bytes these are.

    Args:
        path: a file of `create`; tensors that it does not name are left out.
        tensors: sharded tensors by their own rows, others whole and by the first rank alone.
        first: whether this is the first rank.

    Raises:
        OSError: the file is missing or not writable, or the disk is full.
    """
    if not (first or any(map(is_sharded, tensors.values()))):
        return 0
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    written = 0
    # Opened for writing alone: what is read comes back with what is written, over others' rows.
    with os.fdopen(os.open(path, os.O_WRONLY | getattr(os, "O_BINARY", 0)), "wb") as file:
        for name in header:
            tensor = tensors.get(name)
            if tensor is None or not (first or is_sharded(tensor)):
                continue
            first_row, rows = local_part(tensor)
            row_size = rows.itemsize * math.prod(header[name]["shape"][1:])
            file.seek(8 + size + header[name]["data_offsets"][0] + first_row * row_size)
            written += file.write(_bytes(rows))
        file.flush()
        os.fsync(file.fileno())  # of this machine, before the first rank reads what is there
    return written


def _bytes(tensor: Tensor) -> Any:
    """The values of a tensor as they are in a file."""
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _n_bytes(tensor: Tensor) -> int:
    """Of a whole tensor, also of a sharded one."""
    return tensor.itemsize * math.prod(tensor.shape)
