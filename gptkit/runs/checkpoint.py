"""Read, list and delete step folders: safetensors and JSON. Nothing is ever unpickled.

checkpoints/step-00001000/
  model.safetensors       weights of the plain model
  model.NAME.safetensors  a further set of weights that a callback offers, such as an average
  optimizer.safetensors   optimizer moments and generator states; an imported model has none yet
  callbacks.safetensors   tensors of callbacks, if there are any
  adapter_model.safetensors, adapter_config.json
                          LoRA's adapters, for PEFT and to resume; their products are in the weights
  codec.json              the codec's options, such as a vocabulary, if they are long
  state.json              everything else, with the sha256 of the files above
  state.json.sha256       its own digest

Beside the step folders, the links `last` and `best` point to two of them.

Only reading and writing tensors imports torch. `checkpoint_writer` writes step folders.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError
from safetensors import SafetensorError

from gptkit.errors import CheckpointError, FormatError, UsageError
from gptkit.files import check_name, digest, read_file
from gptkit.recipe import adapters
from gptkit.recipe.codec_record import CodecRecord
from gptkit.recipe.problems import first_fault
from gptkit.runs.state import FORMAT, State
from gptkit.runs.tensor_file import TensorFile
from gptkit.staging import unused_name

STATE, STATE_DIGEST, CODEC = "state.json", "state.json.sha256", "codec.json"
MOST_BYTES, MOST_CODEC = 64 << 20, 1 << 30
"""Bytes of a state.json, and of a codec.json."""


def weights_file(weights: str | None = None) -> str:
    """The name, without ending, of the file of a further set of weights; None: of the model's."""
    return "model" if weights is None else f"model.{weights}"


def adapters_file(weights: str | None = None) -> str:
    """The name, without ending, of the file of a set's adapters; None: of the model's."""
    return adapters.FILE if weights is None else f"{adapters.FILE}.{weights}"


class Checkpoint(NamedTuple):
    """A step folder that was read."""

    state: State
    tensors: dict[str, TensorFile]
    """Tensors by file name without ending: model, optimizer, callbacks."""


def load(step_folder: Path) -> Checkpoint:
    """Read a step folder.

    Raises:
        CheckpointError: it is damaged, incomplete or of a newer format.
    """
    state = with_codec(step_folder, load_state(step_folder))
    names = [n.removesuffix(".safetensors") for n in state.sha256 if n.endswith(".safetensors")]
    return Checkpoint(state, {name: load_tensors(step_folder, state, name) for name in names})


def load_tensors(step_folder: Path, state: State, name: str = "model") -> TensorFile:
    """Open the tensors of one file, after checking its digest.

    Raises:
        UsageError: the path is not UTF-8.
        CheckpointError: it is missing or damaged.
    """
    check_name(step_folder)
    path = step_folder / f"{name}.safetensors"
    try:
        if digest(path) != state.sha256.get(path.name):
            raise damaged(path, "its sha256 is not the one in state.json")
        return TensorFile(path)
    except (OSError, SafetensorError) as error:
        raise damaged(path, getattr(error, "strerror", None) or str(error)) from error


def load_weights(step_folder: Path, state: State, weights: str | None) -> TensorFile:
    """Open a set of weights; None: the model's own.

    Raises:
        UsageError: there is no such set.
        CheckpointError: its file is missing or damaged.
    """
    if weights is not None and weights not in state.weights:
        sets = ", ".join(sorted(state.weights))
        raise UsageError(
            f'{step_folder}: no weights named "{weights}"',
            hint=f"there are: {sets}" if sets else "it has only the model's own",
        )
    return load_tensors(step_folder, state, weights_file(weights))


def load_state(step_folder: Path) -> State:
    """Read a step folder's `state.json`.

    Raises:
        CheckpointError: it is missing, damaged or of a newer format.
    """
    path = step_folder / STATE
    try:
        contents = read_file(path, limit=MOST_BYTES)
        expected = read_file(path.with_name(STATE_DIGEST), limit=100)
        state = State.model_validate_json(contents)
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["loc"] == ("format",) and isinstance(first["input"], int):
            raise FormatError(
                f"{path}: written in format {first['input']}, this gptkit reads {FORMAT}",
                hint="pip install --upgrade gptkit",
            ) from None
        raise damaged(path, first_fault(error)) from None
    if hashlib.sha256(contents).hexdigest().encode() != expected.strip():
        raise damaged(path, f"its sha256 is not the one in {STATE_DIGEST}")
    if fault := _files_fault(state):
        raise damaged(path, f"sha256: {fault}")
    return state


def with_codec(step_folder: Path, state: State) -> State:
    """The state with the codec's options, also where they have a file of their own.

    Raises:
        CheckpointError: that file is missing or damaged.
    """
    if CODEC not in state.sha256:
        return state
    path = step_folder / CODEC
    try:
        contents = read_file(path, limit=MOST_CODEC)
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error
    if hashlib.sha256(contents).hexdigest() != state.sha256[CODEC]:
        raise damaged(path, "its sha256 is not the one in state.json")
    try:
        codec = CodecRecord.model_validate({**dict(state.codec), "options": json.loads(contents)})
    except (ValueError, RecursionError):
        raise damaged(path, "holds no options of a codec") from None
    return state.model_copy(update={"codec": codec})


def damaged(path: Path, reason: str) -> CheckpointError:
    """The error of a file that is not what was saved there."""
    return CheckpointError(
        f"{path}: damaged or incomplete: {reason}",
        hint="--checkpoint STEP takes another; gptkit resume continues from the newest intact one",
    )


def step_name(step: int) -> str:
    """The name of a step's folder."""
    return f"step-{step:08d}"


def step_of(step_folder: Path) -> int:
    """The step in a folder's name."""
    return int(step_folder.name.removeprefix("step-"))


def step_folders(folder: Path) -> list[Path]:
    """The step folders below a run's `checkpoints/`, oldest first."""
    found = [p for p in folder.glob("step-*") if p.name[5:].isdecimal() and p.is_dir()]
    return sorted(found, key=step_of)


def best(folder: Path) -> Path | None:
    """The step folder with the lowest validation loss measured at its own step."""
    return best_of(load_states(folder))


def best_of(states: Mapping[Path, State | None]) -> Path | None:
    """Likewise, of the step folders that `load_states` has read."""
    losses = {}
    for path, state in states.items():
        loss = state.val_loss if state and state.val_step == state.step else None
        if loss is not None and math.isfinite(loss):
            losses[path] = loss
    return min(losses, key=losses.__getitem__, default=None)


def load_states(folder: Path) -> dict[Path, State | None]:
    """The step folders below a run's `checkpoints/`, oldest first; a damaged one has no state."""
    states: dict[Path, State | None] = {}
    for path in step_folders(folder):
        try:
            states[path] = load_state(path)
        except CheckpointError:
            if path.exists():  # else a process that trains has deleted it meanwhile
                states[path] = None
    return states


def prune(folder: Path, keep: int) -> None:
    """Delete all step folders but the newest `keep`, the best one and that of an import.

    Raises:
        CheckpointError: one cannot be deleted.
    """
    paths = step_folders(folder)
    states = load_states(folder)
    imported = (path for path, state in states.items() if state and state.imported)
    kept = {*paths[-keep:], best_of(states), *imported}
    for path in paths:
        if path not in kept:
            _delete(path)


def delete_later(folder: Path, step: int) -> None:
    """Delete the step folders after a step: a run that has just saved it found them damaged.

    Otherwise they would count as the newest, and be kept in place of what it saves.

    Raises:
        CheckpointError: one cannot be deleted.
    """
    for path in step_folders(folder):
        if step_of(path) > step:
            _delete(path)


def link(folder: Path) -> None:
    """Point the links `last` and `best` to their step folders, where the system has links."""
    for name, target in (("last", step_folders(folder)[-1:]), ("best", [best(folder)])):
        new = unused_name(folder / name)
        with suppress(OSError):
            if target and target[0]:
                new.symlink_to(target[0].name, target_is_directory=True)
                new.replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete the unfinished folders of killed processes."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _files_fault(state: State) -> str | None:
    """What is wrong with the names of a step folder's files, which no one else may choose."""
    sets = (None, *state.weights)
    needed = {f"{weights_file(name)}.safetensors" for name in sets}
    if state.lora:
        needed |= {f"{adapters_file(name)}.safetensors" for name in sets}
        needed.add(adapters.CONFIG_FILE)
    if not state.imported:
        needed.add("optimizer.safetensors")
    if missing := needed - state.sha256.keys():
        return f"has no {min(missing)}"
    known = needed | {"optimizer.safetensors", "callbacks.safetensors", CODEC}
    unknown = state.sha256.keys() - known
    return f"{min(unknown)[:80]!r} is no file of a checkpoint" if unknown else None


def _delete(step_folder: Path) -> None:
    stale = unused_name(step_folder)
    try:
        step_folder.rename(stale)  # first, so that a kill leaves no partial step folder
        shutil.rmtree(stale)
    except OSError as error:
        raise CheckpointError(f"{step_folder}: cannot be deleted: {error.strerror}") from error
