"""The weights of a step folder, checked against what its own state.json describes.

Imports no torch. Digests show that nothing was damaged; they do not show that it was gptkit that
wrote it. So no model is built before names, shapes and types of all tensors are known to fit.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptkit.codec import Codec
from gptkit.contract.codec_check import check_loaded
from gptkit.errors import UsageError
from gptkit.recipe import codec_record, sizes
from gptkit.runs import checkpoint
from gptkit.runs.checkpoint import damaged, weights_file
from gptkit.runs.state import State
from gptkit.runs.tensor_file import Entry, TensorFile

FLOATS = ("F32", "F64", "F16", "BF16")
"""The dtypes of weights and moments, as safetensors names them."""
Array = NDArray[Any]
Shapes = Mapping[str, sizes.Shape]
"""The shape of every parameter by its name."""


def load_weights(step_folder: Path, weights: str | None) -> tuple[State, TensorFile]:
    """Read the state and open a set of weights; None: the model's own.

    Raises:
        UsageError: there is no such set.
        CheckpointError: its file is missing or damaged, or is not what the state describes.
    """
    state = checkpoint.with_codec(step_folder, checkpoint.load_state(step_folder))
    tensors = checkpoint.load_weights(step_folder, state, weights)
    check_weights(step_folder, tensors, expected_shapes(step_folder, state, tensors), weights)
    return state, tensors


def expected_shapes(step_folder: Path, state: State, tensors: TensorFile) -> Shapes:
    """The shapes that state.json describes, as long as the file can hold so many."""
    if state.config.n_layer > len(tensors):
        fault = f"config.n_layer: {state.config.n_layer}, which the weights do not have"
        raise damaged(step_folder / checkpoint.STATE, fault)
    return sizes.parameter_shapes(state.config)


def check_weights(
    step_folder: Path, tensors: TensorFile, shapes: Shapes, weights: str | None
) -> None:
    """Raise a CheckpointError if a set of weights is not that of the model."""
    path = step_folder / f"{weights_file(weights)}.safetensors"
    for name in shapes.keys() - tensors.keys():
        raise damaged(path, f"{name} is missing")
    for name, entry in tensors.entries.items():
        if name not in shapes:
            raise damaged(path, f"{name[:80]} is no weight of this model")
        if fault := fault_of(entry, shapes[name]):
            raise damaged(path, f"{name} {fault}")


def fault_of(entry: Entry, shape: sizes.Shape) -> str | None:
    """What is wrong with a weight or a moment."""
    if entry.shape != shape:
        return f"has the shape {[*entry.shape]}, state.json describes {[*shape]}"
    return None if entry.dtype in FLOATS else f"should hold floats, got {entry.dtype}"


def map_weights(step_folder: Path, weights: str | None) -> tuple[State, dict[str, Array] | None]:
    """Like `load_weights`, as arrays in the memory of the mapped file, which keeps no changes.

    Returns:
        The state, and arrays by name; None if they are not float32.
    """
    state, tensors = load_weights(step_folder, weights)
    if any(entry.dtype != "F32" for entry in tensors.entries.values()):
        return state, None
    path = step_folder / f"{weights_file(weights)}.safetensors"
    try:
        return state, _map(path)
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error


def read_codec(step_folder: Path) -> Codec:
    """The codec of a checkpoint, from its files; see `make_codec`."""
    state = checkpoint.with_codec(step_folder, checkpoint.load_state(step_folder))
    return make_codec(step_folder, state)


def make_codec(step_folder: Path, state: State) -> Codec:
    """The codec of a checkpoint.

    Raises:
        PluginError: its distribution is not installed.
        CheckpointError: it does not fit the model.
    """
    codec = codec_record.make_codec(state.codec)
    try:
        check_loaded(codec, state.config.vocab_size)
    except UsageError as error:
        raise damaged(step_folder / checkpoint.STATE, f"codec: {error}") from None
    return codec


def _map(path: Path) -> dict[str, Array]:
    """The float32 tensors of a safetensors file whose header was checked before."""
    contents = np.memmap(path, np.uint8, "c")
    start = 8 + int.from_bytes(contents[:8].tobytes(), "little")
    header = json.loads(contents[8:start].tobytes())
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        numbers = contents[start + first : start + end].view(np.float32)
        arrays[name] = numbers.reshape(entry["shape"])
    return arrays
