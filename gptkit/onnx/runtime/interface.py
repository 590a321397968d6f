"""What a graph takes and gives: checked when it is opened and after every run. Imports no torch.

A file may be complete and still hold another graph than gptkit writes. So nothing that comes out of
it is used before it was checked.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gptkit.errors import ModelFileError
from gptkit.onnx.runtime.providers import AGAIN
from gptkit.sampling.rule import Ints

INT32, INT64, FLOAT, FLOAT16 = (
    f"tensor({name})" for name in ("int32", "int64", "float", "float16")
)
"""onnxruntime's names of types."""
DTYPES = {INT32: np.int32, INT64: np.int64, FLOAT: np.float32, FLOAT16: np.float16}

Ports = Mapping[str, tuple[str, int]]
"""Inputs or outputs by name: type and number of dimensions."""


def check_ports(session: ort.InferenceSession, path: Path, inputs: Ports, outputs: Ports) -> None:
    """Raise a ModelFileError if a graph takes or gives anything else."""
    for kind, declared, expected in (
        ("input", session.get_inputs(), inputs),
        ("output", session.get_outputs(), outputs),
    ):
        found = {each.name: (each.type, len(each.shape)) for each in declared}
        names = [*expected, *(name for name in found if name not in expected)]
        if wrong := [name for name in names if found.get(name) != expected.get(name)]:
            raise ModelFileError(
                f"{path}: damaged: its {kind} {wrong[0]} is not that of gptkit's graphs", hint=AGAIN
            )


def check_shape(found: NDArray[Any], shape: tuple[int, ...], path: Path) -> None:
    """Raise a ModelFileError if a graph gave an array of another shape."""
    if found.shape != shape:
        raise ModelFileError(
            f"{path}: damaged: its graph gave numbers of the shape {found.shape}, not {shape}",
            hint=AGAIN,
        )


def check_drawn(tokens: Ints, rows: int, most: int, vocab_size: int, path: Path) -> None:
    """Raise a ModelFileError if a graph drew anything but tokens, (rows, 1 to most)."""
    if not (tokens.ndim == 2 and len(tokens) == rows and 1 <= tokens.shape[1] <= most):
        raise ModelFileError(
            f"{path}: damaged: its graph drew tokens of the shape {tokens.shape} for {rows} rows "
            f"of at most {most}",
            hint=AGAIN,
        )
    wrong = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if wrong.size:
        raise ModelFileError(
            f"{path}: damaged: its graph drew the token {wrong[0]}, and the model has {vocab_size}",
            hint=AGAIN,
        )
