"""A run folder: its paths and its lock; find, list and make run folders."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from gptkit.errors import CheckpointError, GptkitError, RunError, UsageError
from gptkit.files import lock, quote, read_json, writing
from gptkit.recipe.older import ENVIRONMENT_BYTES
from gptkit.runs import checkpoint

T = TypeVar("T")

RUNS = Path("runs")
"""Where run folders are made and looked for, below the working directory."""


@dataclass(frozen=True)
class RunFolder:
    """One run on disk."""

    path: Path
    _held: int | None = field(default=None, repr=False, compare=False)
    """A descriptor of the folder while this process holds it, wherever it is moved to."""

    @property
    def recipe(self) -> Path:
        """The complete recipe."""
        return self.path / "recipe.toml"

    @property
    def environment(self) -> Path:
        """Versions, device and data."""
        return self.path / "environment.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of the step folders."""
        return self.path / "checkpoints"

    def step_folder(self, which: str | int = "last") -> Path:
        """A step folder: "last", "best" or a step's number.

        Raises:
            RunError: there is none.
        """
        folders = {checkpoint.step_of(p): p for p in checkpoint.step_folders(self.checkpoints)}
        if not folders:
            raise RunError(
                f"{self.path}: has no checkpoints",
                hint=f"start it: gptkit resume {quote(self.path)}",
            )
        which = str(which)
        found: Path | None
        if which == "last":
            found = list(folders.values())[-1]
        elif which == "best":
            found = checkpoint.best(self.checkpoints)
        else:
            found = folders.get(int(which)) if which.isdecimal() and len(which) < 20 else None
        if found is None:
            best = ["best"] if checkpoint.best(self.checkpoints) else []
            known = ", ".join(["last", *best, *map(str, folders)])
            raise RunError(f"{self.path}: no checkpoint {which}", hint=f"one of {known}")
        return found

    def read_step(self, which: str | int, read: Callable[[Path], T]) -> T:
        """What `read` makes of a step folder; see `step_folder`.

        It looks again if a process that trains deletes the folder meanwhile.

        Raises:
            RunError: there is none.
            CheckpointError: from `read`.
        """
        while True:
            step_folder = self.step_folder(which)
            try:
                return read(step_folder)
            except CheckpointError:
                if step_folder.exists():
                    raise

    def read_environment(self) -> dict[str, Any]:
        """The contents of environment.json; empty if it is missing or damaged."""
        try:
            found = read_json(self.environment, limit=ENVIRONMENT_BYTES)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def trained(self) -> float:
        """When the training of this run was last begun or continued; 0 if that is not known."""
        found = self.read_environment().get("trained")
        return found if isinstance(found, float) and math.isfinite(found) else 0.0

    @property
    def cpu_dtype(self) -> str | None:
        """The precision in which this run was begun on a CPU; None if it was not."""
        about = self.read_environment()
        return str(about.get("dtype")) if about.get("device") == "cpu" else None

    @contextmanager
    def lock(self, *, hint: str = "wait for it, or stop it") -> Iterator["RunFolder"]:
        """Hold the folder for this process; the system releases it when the process dies.

        Args:
            hint: what to do while another process holds it.

        Yields:
            The folder; its `check` notices if it is moved or deleted.

        Raises:
            RunError: another process holds it, it cannot be written, or it was moved or deleted.
        """
        busy = RunError(f"{self.path}: another process is training in this folder", hint=hint)
        with ExitStack() as stack:
            with writing(self.path):
                stack.enter_context(lock(self.path / ".lock", busy=busy))
                held = None
                if os.name != "nt":  # where a folder with open files stays where it is
                    held = os.open(self.path, os.O_RDONLY)
                    stack.callback(os.close, held)
            run = replace(self, _held=held)
            try:
                yield run
            except (GptkitError, OSError):  # perhaps of a file that could not be written there
                run.check()
                raise

    def check(self) -> None:
        """Raise a RunError if the folder that this process holds is no longer at its path."""
        if not self.is_there():
            raise RunError(
                f"{self.path}: was moved or deleted while it was trained",
                hint="its last checkpoint is where the folder is now: gptkit resume FOLDER",
            )

    def is_there(self) -> bool:
        """Whether the folder is at its path: the one that this process holds, if it holds one."""
        if self._held is None:
            return self.path.is_dir()
        try:
            return os.path.samestat(os.fstat(self._held), self.path.stat())
        except OSError:
            return False


def _is_foreign(path: Path) -> bool:
    """Whether an installed format reads what is there."""
    from gptkit.recipe import formats  # with torch

    try:
        return bool(formats.find_reader(str(path)))
    except UsageError:
        return False


def open_run(path: Path | None) -> RunFolder:
    """An existing run folder; without a path the newest one under `runs/`.

    Raises:
        UsageError: there is none.
    """
    if path is None:
        runs = list_runs()
        if not runs:
            raise UsageError(
                f"no run folders under {RUNS}/",
                hint="make one: gptkit train RECIPE; or give the path of one",
            )
        return runs[-1]
    if not (path / "recipe.toml").is_file():
        fault, hint = "no such run folder", "gptkit runs list shows the run folders"
        if path.exists():
            fault = "not a run folder (no recipe.toml)"
            if _is_foreign(path):
                hint = f"a model of another program becomes a run by: gptkit import {quote(path)}"
            inside = (p for p in path.parents if (p / "recipe.toml").is_file())
            if (around := next(inside, None)) and (around / "checkpoints").is_dir():
                fault, hint = "is inside a run folder", f"give the run folder: {quote(around)}"
        run = path.parent.parent
        if path.parent.name == "checkpoints" and (run / "recipe.toml").is_file():
            which = path.name.removeprefix("step-").lstrip("0") or "0"
            fault = "a checkpoint, not a run folder"
            hint = f"gptkit sample {quote(run)} --checkpoint {which}"
        if path.suffix.lower() == ".onnx" and path.is_file():
            fault, hint = "an exported model can only be sampled", "give the run that was exported"
        raise UsageError(f"{path}: {fault}", hint=hint)
    return RunFolder(path)


def list_runs(root: Path = RUNS) -> list[RunFolder]:
    """All run folders under `root`; the one that was trained last comes last."""
    return sorted((RunFolder(path.parent) for path in root.glob("*/recipe.toml")), key=_age)


def now() -> float:
    """A time for `RunFolder.trained`, later than that of all runs, whatever the clock says."""
    latest = max((run.trained for run in list_runs()), default=0.0)
    return max(time.time(), math.nextafter(latest, math.inf))


def _age(run: RunFolder) -> tuple[float, float, str]:
    """Sorts runs by their training; those of earlier versions come first, by their recipe."""
    try:
        changed = run.recipe.lstat().st_mtime
    except OSError:  # deleted meanwhile
        changed = 0.0
    return run.trained, changed, str(run.path)
