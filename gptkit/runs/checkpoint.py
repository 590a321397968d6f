"""A step folder: safetensors and JSON, complete or absent, never half. Nothing is ever unpickled.

checkpoints/step-00001000/
  model.safetensors       weights of the plain model
  optimizer.safetensors   optimizer moments and generator states
  callbacks.safetensors   tensors of callbacks, where there are any
  state.json              everything else, with the sha256 of the files above
  state.json.sha256       its own
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptkit.recipe.options import GPTConfig
from gptkit.errors import CheckpointError
from gptkit.runs.step_folder import (
    SEAL,
    CodecRecord,
    State,
    best,
    damaged,
    digest,
    load_state,
    step_folders,
    sweep,
)

__all__ = [
    "CodecRecord",
    "Record",
    "State",
    "Tensors",
    "best",
    "load",
    "load_state",
    "load_tensors",
    "prune",
    "save",
    "step_folders",
    "sweep",
]

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Record:
    """What every checkpoint of a run says, and where it goes."""

    folder: Path
    """The run's `checkpoints/`."""
    gptkit: str
    config: GPTConfig
    dataset: str
    codec: CodecRecord

    def state(self, **moment: Any) -> State:
        """The `State` of one moment."""
        return State(
            gptkit=self.gptkit,
            config=self.config,
            dataset=self.dataset,
            codec=self.codec,
            **moment,
        )


def save(folder: Path, state: State, files: Mapping[str, Tensors]) -> Path:
    """Write a step folder below `folder`: under a temporary name, fsynced, then renamed.

    Args:
        folder: the run's `checkpoints/`.
        state: its `sha256` is filled in here.
        files: tensors by file name without ending, "model" and so on; empty ones are left out.

    Raises:
        CheckpointError: the disk is full or not writable; nothing half-written stays behind.
    """
    target = folder / f"step-{state.step:08d}"
    temporary = folder / f".{target.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        digests = {}
        for name, tensors in files.items():
            if tensors:
                path = temporary / f"{name}.safetensors"
                save_file(_separate(tensors), path)
                digests[path.name] = digest(path)
        state = state.model_copy(update={"sha256": digests})
        (temporary / "state.json").write_text(
            state.model_dump_json(indent=2) + "\n", encoding="utf-8"
        )
        for name in digests:  # safetensors lets nobody else read
            shutil.copymode(temporary / "state.json", temporary / name)
        (temporary / SEAL).write_text(digest(temporary / "state.json") + "\n")
        for path in [*temporary.iterdir(), temporary]:
            _sync(path)
        _put(temporary, target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{target}: cannot be saved: {error}",
            hint="earlier checkpoints are intact; make room, then gptkit resume",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already if all went well
    return target


def load(step_folder: Path) -> tuple[State, dict[str, Tensors]]:
    """Read a step folder back: its state, and tensors by file name without ending.

    Raises:
        CheckpointError: it is damaged, incomplete or of a newer format.
    """
    state = load_state(step_folder)
    return state, {
        name.removesuffix(".safetensors"): load_tensors(step_folder, state, name)
        for name in state.sha256
    }


def load_tensors(step_folder: Path, state: State, name: str = "model.safetensors") -> Tensors:
    """Read one file of a step folder, after its checksum held.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = step_folder / name
    try:
        if digest(path) != state.sha256.get(name):
            raise damaged(path, "its sha256 is not the one in state.json")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise damaged(path, str(error)) from error


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` step folders and the best one.

    Raises:
        CheckpointError: one cannot be deleted.
    """
    chosen = {*step_folders(folder)[-keep:], best(folder)}
    for path in step_folders(folder):
        if path not in chosen:
            doomed = path.with_name(f".{path.name}.old")
            shutil.rmtree(doomed, ignore_errors=True)
            try:
                path.rename(doomed)  # so that a kill in the middle leaves no partial step folder
                shutil.rmtree(doomed)
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be deleted: {error.strerror}") from error


def _separate(tensors: Tensors) -> Tensors:
    """On the CPU, contiguous, and no two in the same memory, as safetensors wants them."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    seen: set[int] = set()
    for name, tensor in plain.items():
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
            plain[name] = tensor.clone()
        seen.add(storage.data_ptr())
    return plain


def _put(temporary: Path, target: Path) -> None:
    """Rename, in the place of a damaged folder if there is one."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    if os.name == "nt":  # has no such call for folders, and refuses it for files open to read
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
