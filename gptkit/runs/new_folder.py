"""Make a run folder: it becomes one with its recipe; without that, nothing remains of it."""

import itertools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from gptkit.errors import UsageError
from gptkit.files import check_name, make_folder, quote, writing
from gptkit.runs.run_folder import RUNS, RunFolder
from gptkit.staging import remove_temporaries

OTHER_FOLDER = "choose another folder: --out DIR"
BEFORE_RECIPE = re.compile(
    r"\.lock|environment\.json|base\.safetensors|"
    r"\.(environment\.json|recipe\.toml|checkpoints|base\.safetensors)\..*\.tmp"
)
"""The files that a run writes before its recipe."""


@contextmanager
def claim(path: Path | None, name: str) -> Iterator[RunFolder]:
    """A new run folder, locked for this process; nothing of it remains if it gets no recipe.

    Args:
        path: where; None takes a new one under `runs/`, called after `name` and the time.
        name: of the recipe.

    Raises:
        UsageError: something is there already.
        RunError: it cannot be written, or another process holds it.
    """
    check_name(path or RUNS)
    with writing(path or RUNS, hint=OTHER_FOLDER):
        made, remove = (path, make_folder(path)) if path else _make_new_name(name)
    unused = True
    try:
        with RunFolder(made).lock(hint=f"wait for it, stop it, or {OTHER_FOLDER}") as run:
            check_unused(made)
            remove_temporaries(made)
            try:
                yield run
            finally:
                unused = run.is_there() and _empty(made)
    finally:
        if unused:
            remove()


def check_unused(path: Path) -> None:
    """Raise a UsageError if `path` cannot become a new run folder because something is there."""
    if _is_unused(path):
        return
    is_run = (path / "recipe.toml").exists()
    resume = f"continue it: gptkit resume {quote(path)}; or " if is_run else ""
    raise UsageError(f"{path}: already exists", hint=resume + OTHER_FOLDER)


def _is_unused(path: Path) -> bool:
    """Whether a path holds nothing but what a run writes before its recipe."""
    if not path.exists():
        return True
    if not path.is_dir():
        return False
    names = {p.name for p in path.iterdir()}
    return not names or (".lock" in names and all(map(BEFORE_RECIPE.fullmatch, names)))


def _make_new_name(name: str) -> tuple[Path, Callable[[], None]]:
    """Make a folder with an unused name, even if two runs start in the same second.

    Returns:
        The folder, and what removes it if it is empty.

    Raises:
        OSError: it cannot be made.
    """
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    names = (f"{name}-{stamp}" + (f"-{i}" if i > 1 else "") for i in itertools.count(1))
    while True:
        path = RUNS / next(names)
        try:
            return path, make_folder(path, exist_ok=False)
        except FileExistsError:
            if not os.path.lexists(path):  # then the folder around it cannot be made
                raise


def _empty(path: Path) -> bool:
    """Delete what a run wrote before its recipe; say whether that was all."""
    if not _is_unused(path):
        return False
    for left in path.iterdir():
        with suppress(OSError):
            left.unlink()
    return True
