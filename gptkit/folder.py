"""A run folder: where its parts are, which one is meant, and who may write to it."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gptkit import step_folder
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
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

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
                hint=f"train it from the start: gptkit train {self.recipe}",
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


def new_run(path: Path) -> RunFolder:
    """A run folder that does not exist yet; nothing is written.

    Raises:
        UsageError: something is there already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        again = f"gptkit resume {path} continues it, " if (path / "recipe.toml").exists() else ""
        raise UsageError(f"{path}: already exists", hint=f"{again}--out DIR takes another name")
    return RunFolder(path)


def create(run: RunFolder) -> None:
    """Make a run's folder, writable.

    Raises:
        RunError: it cannot be made or written.
    """
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run.path):
            pass
    except OSError as error:
        raise _not_writable(run.path, error) from error


@contextmanager
def undone_on_error(run: RunFolder) -> Iterator[None]:
    """Delete a new run's folder where its first files cannot be written."""
    try:
        yield
    except RunError:
        shutil.rmtree(run.path, ignore_errors=True)
        raise


def name_for(recipe: Path) -> Path:
    """A new folder's name, from the recipe's and the time of day."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    path = RUNS / f"{recipe.stem}-{stamp}"
    return path if not path.exists() else path.with_name(f"{path.name}-{os.getpid()}")


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
        fault = "is not a run folder (no recipe.toml)" if path.exists() else "no such run folder"
        raise UsageError(f"{path}: {fault}", hint="gptkit runs list shows what there is")
    return RunFolder(path)


def list_runs(root: Path = RUNS) -> list[RunFolder]:
    """All run folders under `root`, oldest first."""
    found = [path.parent for path in root.glob("*/recipe.toml")]
    return [RunFolder(p) for p in sorted(found, key=lambda p: (p / "recipe.toml").stat().st_mtime)]


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is complete or as it was before.

    Raises:
        RunError: the disk is full or not writable.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _not_writable(path, error) from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, complete or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def _not_writable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path}: cannot be written: {error.strerror or error}",
        hint="--out DIR takes another place",
    )


def _step(folder: Path) -> int:
    return int(re.sub(r"\D", "", folder.name))
