"""A step folder: safetensors and JSON, complete or absent, never half. Nothing is ever unpickled.

checkpoints/step-00001000/
  model.safetensors       weights of the plain model
  optimizer.safetensors   optimizer moments and generator states
  callbacks.safetensors   tensors of callbacks, where there are any
  state.json              everything else, with the sha256 of the files above
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptkit.config import GPTConfig
from gptkit.errors import CheckpointError

FORMAT: Literal[1] = 1
"""Raised whenever an older gptkit could not read what a newer one writes."""


class CodecRecord(BaseModel):
    """How to make the codec again without the data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    distribution: str
    options: dict[str, Any]


class State(BaseModel):
    """What `state.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    gptkit: str
    config: GPTConfig
    dataset: str
    codec: CodecRecord
    step: NonNegativeInt
    val_loss: float | None
    """Of the latest evaluation, in nats per token."""
    val_step: NonNegativeInt | None
    """The step of the latest evaluation."""
    optimizer_groups: list[dict[str, bool | int | float]]
    callbacks: list[dict[str, Any]]
    """JSON values that callbacks keep, in the recipe's order."""
    sha256: dict[str, str] = {}
    """Digest by file name."""


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
                save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, path)
                digests[path.name] = _digest(path)
        state = state.model_copy(update={"sha256": digests})
        (temporary / "state.json").write_text(state.model_dump_json(indent=2) + "\n")
        for path in [*temporary.iterdir(), temporary]:
            _sync(path)
        _put(temporary, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{target}: cannot be saved: {error}",
            hint="earlier checkpoints are intact; make room, then gptkit resume",
        ) from error
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


def load_state(step_folder: Path) -> State:
    """Read a step folder's `state.json`.

    Raises:
        CheckpointError: it is missing, damaged or of a newer format.
    """
    path = step_folder / "state.json"
    try:
        return State.model_validate_json(path.read_bytes())
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["loc"] == ("format",) and isinstance(first["input"], int):
            raise CheckpointError(
                f"{path}: written in format {first['input']}, this gptkit reads {FORMAT}",
                hint="pip install --upgrade gptkit",
            ) from None
        where = ".".join(map(str, first["loc"])) or "contents"
        raise _damaged(path, f"{where}: {first['msg']}") from None


def load_tensors(step_folder: Path, state: State, name: str = "model.safetensors") -> Tensors:
    """Read one file of a step folder, after its checksum held.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = step_folder / name
    try:
        if _digest(path) != state.sha256.get(name):
            raise _damaged(path, "its sha256 is not the one in state.json")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from error


def step_folders(folder: Path) -> list[Path]:
    """The step folders below a run's `checkpoints/`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def best(folder: Path) -> Path | None:
    """The step folder with the lowest validation loss measured at its own step."""
    losses = {}
    for path in step_folders(folder):
        try:
            state = load_state(path)
        except CheckpointError:
            continue
        if state.val_loss is not None and state.val_step == state.step:
            losses[path] = state.val_loss
    return min(losses, key=losses.__getitem__, default=None)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` step folders and the best one."""
    chosen = {*step_folders(folder)[-keep:], best(folder)}
    for path in step_folders(folder):
        if path not in chosen:
            doomed = path.with_name(f".{path.name}.old")
            path.rename(doomed)  # so that a kill in the middle leaves no partial step folder
            shutil.rmtree(doomed)


def sweep(folder: Path) -> None:
    """Delete what a killed process left half-written or half-deleted."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _put(temporary: Path, target: Path) -> None:
    """Rename, in the place of a damaged folder if there is one."""
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: damaged or incomplete: {reason}",
        hint="--checkpoint STEP takes another; gptkit resume goes back to the newest intact one",
    )
