"""A run folder: where its parts are, which one is meant, and who may write to it."""

import itertools
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gptkit.runs import step_folder
from gptkit.errors import RunError, UsageError

RUNS = Path("runs")
"""Where run folders are made and looked for, below the working directory."""


@dataclass(frozen=True)
class RunFolder:
    """One run on disk."""

    path: Path

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
        """The step folders."""
        return self.path / "checkpoints"

    def step_folder(self, which: str = "last") -> Path:
        """A step folder: "last", "best" or a step's number.

        Raises:
            RunError: there is none.
        """
        folders = step_folder.step_folders(self.checkpoints)
        if not folders:
            raise RunError(
                f"{self.path}: has no checkpoints",
                hint=f"train it from the start: gptkit train {quote(self.recipe)}",
            )
        if which == "last":
            return folders[-1]
        if which == "best":
            found = step_folder.best(self.checkpoints)
        else:
            found = next((f for f in folders if which.isdigit() and _step(f) == int(which)), None)
        if found is None:
            steps = ", ".join(str(_step(folder)) for folder in folders)
            raise RunError(f"{self.path}: no checkpoint {which}", hint=f"last, best or {steps}")
        return found

    def read_environment(self) -> dict[str, Any]:
        """What environment.json says; nothing where it is missing or damaged."""
        try:
            found = json.loads(self.environment.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one process; the system lets go when the process dies.

        Raises:
            RunError: another process holds it, or it cannot be written.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RunError(
                f"{self.path}: another process is training in this folder",
                hint="wait for it, stop it, or choose another folder with --out",
            ) from None
        except OSError as error:
            raise _not_writable(self.path, error) from error
        try:
            yield
        finally:
            lock.release()


@contextmanager
def claim(path: Path | None, recipe: Path) -> Iterator[RunFolder]:
    """A new run folder, locked for this process; it is gone again if no recipe was put into it.

    Args:
        path: where; None takes a new name under `runs/`, from the recipe's and the time of day.
        recipe: the file that is trained.

    Raises:
        UsageError: something is there already.
        RunError: it cannot be written, or another process has it.
    """
    try:
        run = RunFolder(path or _new_name(recipe))
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(path or RUNS, error) from error
    with run.lock():
        check_unused(run.path)
        try:
            yield run
        finally:
            if not run.recipe.exists():
                shutil.rmtree(run.path, ignore_errors=True)


def check_unused(path: Path) -> None:
    """Raise a UsageError where a new run folder would meet something that is there already."""
    if not path.exists() or (path.is_dir() and all(p.name == ".lock" for p in path.iterdir())):
        return
    known = (path / "recipe.toml").exists()
    again = f"gptkit resume {quote(path)} continues it; " if known else ""
    raise UsageError(f"{path}: already exists", hint=f"{again}--out DIR takes another name")


def quote(path: Path) -> str:
    """A path as it can be pasted into a shell."""
    return shlex.quote(str(path))


def open_run(path: Path | None) -> RunFolder:
    """An existing run folder; without a path the newest one under `runs/`.

    Raises:
        UsageError: there is none.
    """
    if path is None:
        runs = list_runs()
        if not runs:
            raise UsageError(
                f"no run folders under {RUNS}/", hint="gptkit train RECIPE makes one, or name it"
            )
        return runs[-1]
    if not (path / "recipe.toml").is_file():
        fault, hint = "no such run folder", "gptkit runs list shows what there is"
        if path.exists():
            fault = "is not a run folder (no recipe.toml)"
        if path.suffix == ".onnx" and path.is_file():
            fault, hint = "an exported model can only be sampled", "name the run that it is of"
        raise UsageError(f"{path}: {fault}", hint=hint)
    return RunFolder(path)


def list_runs(root: Path = RUNS) -> list[RunFolder]:
    """All run folders under `root`, oldest first."""
    found = [path.parent for path in root.glob("*/recipe.toml")]
    return [RunFolder(p) for p in sorted(found, key=lambda p: (p / "recipe.toml").stat().st_mtime)]


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is complete or as it was before; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, contents: bytes) -> None:
    """Write a file so that it is complete or as it was before, also after a power cut.

    Raises:
        RunError: the disk is full or not writable.
    """
    target = path.resolve()  # behind a link, not over it
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _not_writable(path, error) from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, complete or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def _new_name(recipe: Path) -> Path:
    """Make a folder that nobody else has, even if two runs start in the same second."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    RUNS.mkdir(exist_ok=True)
    names = (f"{recipe.stem}-{stamp}" + (f"-{i}" if i > 1 else "") for i in itertools.count(1))
    while True:
        path = RUNS / next(names)
        with suppress(FileExistsError):
            path.mkdir()
            return path


def _not_writable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path}: cannot be written: {error.strerror or error}",
        hint="--out takes another place",
    )


def _step(folder: Path) -> int:
    return int(re.sub(r"\D", "", folder.name))
