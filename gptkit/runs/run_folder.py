"""A run folder: its paths and its lock; find, list and make run folders."""

import itertools
import json
import shlex
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gptkit.errors import RunError, UsageError
from gptkit.files import lock, writing
from gptkit.runs import checkpoint

RUNS = Path("runs")
"""Where run folders are made and looked for, below the working directory."""
OTHER_FOLDER = "choose another folder: --out DIR"


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

    def read_environment(self) -> dict[str, Any]:
        """The contents of environment.json; empty if it is missing or damaged."""
        try:
            found = json.loads(self.environment.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @contextmanager
    def lock(self, *, hint: str = "wait for it, or stop it") -> Iterator[None]:
        """Hold the folder for this process; the system releases it when the process dies.

        Args:
            hint: what to do while another process holds it.

        Raises:
            RunError: another process holds it, or it cannot be written.
        """
        busy = RunError(f"{self.path}: another process is training in this folder", hint=hint)
        with ExitStack() as stack:
            with writing(self.path):
                stack.enter_context(lock(self.path / ".lock", busy=busy))
            yield


@contextmanager
def claim(path: Path | None, name: str) -> Iterator[RunFolder]:
    """A new run folder, locked for this process; removed at the end if it has no recipe.

    Args:
        path: where; None takes a new one under `runs/`, called after `name` and the time.
        name: of the recipe.

    Raises:
        UsageError: something is there already.
        RunError: it cannot be written, or another process holds it.
    """
    with writing(path or RUNS, hint=OTHER_FOLDER):
        run = RunFolder(path or _make_new_name(name))
        run.path.mkdir(parents=True, exist_ok=True)
    with run.lock(hint=f"wait for it, stop it, or {OTHER_FOLDER}"):
        check_unused(run.path)
        try:
            yield run
        finally:
            if _is_unused(run.path):
                shutil.rmtree(run.path, ignore_errors=True)


def check_unused(path: Path) -> None:
    """Raise a UsageError if `path` cannot become a new run folder because something is there."""
    if _is_unused(path):
        return
    is_run = (path / "recipe.toml").exists()
    resume = f"continue it: gptkit resume {quote(path)}; or " if is_run else ""
    raise UsageError(f"{path}: already exists", hint=resume + OTHER_FOLDER)


def quote(path: Path) -> str:
    """A path, quoted for a shell."""
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
                f"no run folders under {RUNS}/",
                hint="make one: gptkit train RECIPE; or give the path of one",
            )
        return runs[-1]
    if not (path / "recipe.toml").is_file():
        fault, hint = "no such run folder", "gptkit runs list shows the run folders"
        if path.exists():
            fault = "not a run folder (no recipe.toml)"
        run = path.parent.parent
        if path.parent.name == "checkpoints" and (run / "recipe.toml").is_file():
            which = path.name.removeprefix("step-").lstrip("0")
            fault = "a checkpoint, not a run folder"
            hint = f"gptkit sample {quote(run)} --checkpoint {which}"
        if path.suffix == ".onnx" and path.is_file():
            fault, hint = "an exported model can only be sampled", "give the run that was exported"
        raise UsageError(f"{path}: {fault}", hint=hint)
    return RunFolder(path)


def list_runs(root: Path = RUNS) -> list[RunFolder]:
    """All run folders under `root`, oldest first."""
    found = [path.parent for path in root.glob("*/recipe.toml")]
    return [RunFolder(p) for p in sorted(found, key=lambda p: (p / "recipe.toml").stat().st_mtime)]


def _is_unused(path: Path) -> bool:
    """Whether a path holds nothing but what a run writes before its recipe."""
    if not path.exists():
        return True
    if not path.is_dir():
        return False
    names = {p.name for p in path.iterdir() if not (p.name.startswith(".") and p.suffix == ".tmp")}
    return not names or (".lock" in names and names <= {".lock", "environment.json"})


def _make_new_name(name: str) -> Path:
    """Make a folder with an unused name, even if two runs start in the same second."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    RUNS.mkdir(exist_ok=True)
    names = (f"{name}-{stamp}" + (f"-{i}" if i > 1 else "") for i in itertools.count(1))
    while True:
        path = RUNS / next(names)
        with suppress(FileExistsError):
            path.mkdir()
            return path
