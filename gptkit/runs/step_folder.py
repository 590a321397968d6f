"""What a step folder says of itself in `state.json`, and which step folders a run has. No torch."""

import hashlib
import math
import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from gptkit.recipe.options import GPTConfig
from gptkit.errors import CheckpointError, FormatError

FORMAT: Literal[1] = 1
"""Raised whenever an older gptkit could not read what a newer one writes."""


SEAL = "state.json.sha256"
"""The file that holds the digest of `state.json`, which holds those of the others."""


class CodecRecord(BaseModel):
    """How to make the codec again without the data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    distribution: str
    options: dict[str, Any]


class State(BaseModel):
    """What `state.json` holds; infinity and NaN as JavaScript spells them."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

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


def load_state(step_folder: Path) -> State:
    """Read a step folder's `state.json`.

    Raises:
        CheckpointError: it is missing, damaged or of a newer format.
    """
    path = step_folder / "state.json"
    try:
        state = State.model_validate_json(path.read_bytes())
        expected = path.with_name(SEAL).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path, str(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["loc"] == ("format",) and isinstance(first["input"], int):
            raise FormatError(
                f"{path}: written in format {first['input']}, this gptkit reads {FORMAT}",
                hint="pip install --upgrade gptkit",
            ) from None
        where = ".".join(map(str, first["loc"])) or "contents"
        raise damaged(path, f"{where}: {first['msg']}") from None
    if digest(path) != expected:
        raise damaged(path, f"its sha256 is not the one in {SEAL}")
    return state


def step_folders(folder: Path) -> list[Path]:
    """The step folders below a run's `checkpoints/`, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir() and p.name[5:].isdigit())


def best(folder: Path) -> Path | None:
    """The step folder with the lowest validation loss measured at its own step."""
    losses = {}
    for path in step_folders(folder):
        try:
            state = load_state(path)
        except CheckpointError:
            continue
        loss = state.val_loss
        if loss is not None and math.isfinite(loss) and state.val_step == state.step:
            losses[path] = loss
    return min(losses, key=losses.__getitem__, default=None)


def sweep(folder: Path) -> None:
    """Delete what a killed process left half-written or half-deleted."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def digest(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(path: Path, reason: str) -> CheckpointError:
    """The error that tells of a broken file, with the way out."""
    return CheckpointError(
        f"{path}: damaged or incomplete: {reason}",
        hint="--checkpoint STEP takes another; gptkit resume goes back to the newest intact one",
    )
