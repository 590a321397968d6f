"""Runs: a list, one in detail, several compared."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gptkit.errors import GptkitError
from gptkit.files import read_file
from gptkit.recipe import recipe as recipe_file
from gptkit.recipe.recipe import Recipe
from gptkit.runs import changes, checkpoint, history
from gptkit.runs.run_folder import RunFolder, open_run
from gptkit.runs.state import State
from gptkit.show.tables import print_columns, print_rows
from gptkit.terminal import print_result, say

TEXT_BYTES = 1 << 20
"""Of a damaged recipe that is shown as it is."""


def print_runs(found: Sequence[RunFolder], *, as_json: bool) -> None:
    """Print one line per run."""
    columns = ("run", "step", "val_loss", "best_val_loss", "dataset")
    print_rows([_run_row(run) for run in found], columns, as_json=as_json)


def print_run(found: RunFolder, *, as_json: bool) -> None:
    """Print a run's environment, checkpoints and recipe."""
    environment = found.read_environment()
    states = checkpoint.load_states(found.checkpoints)
    steps = [_checkpoint_row(path, state) for path, state in states.items()]
    recipe = _recipe_text(found)
    if as_json:
        values = _run_row(found, states) | {"environment": environment, "checkpoints": steps}
        print(json.dumps(values | {"recipe": recipe}))
        return
    print_result(f"{found.path}\n")
    for key in ("device", "dtype", "git_commit", "data_sha256"):
        print_result(f"{key:12} {environment.get(key) or '-'}")
    for line in _history(environment):
        print_result(line)
    print()
    print_rows(steps, ("checkpoint", "val_loss"), as_json=False)
    print_result(f"\n{recipe}", end="")


def _recipe_text(found: RunFolder) -> str:
    """A run's recipe with the keys of this version; as it is if it cannot be read."""
    with suppress(GptkitError):
        return recipe_file.read(found.recipe).to_toml()
    try:
        return read_file(found.recipe, limit=TEXT_BYTES).decode(errors="replace")
    except OSError as error:
        return f"{found.recipe}: cannot be read: {error.strerror}\n"


def print_comparison(paths: Sequence[Path], *, as_json: bool) -> None:
    """Print runs side by side: losses, and the recipe fields in which they differ.

    What is no run, or is damaged, is left out, with a line on stderr.

    Raises:
        GptkitError: nothing can be read, or there is nothing at a path.
    """
    found, fields = _readable(paths)
    keys = dict.fromkeys(key for each in fields for key in each)
    differing = [k for k in keys if any(each.get(k) != fields[0].get(k) for each in fields[1:])]
    rows = [
        _run_row(run) | {key: each.get(key) for key in differing}
        for run, each in zip(found, fields, strict=True)
    ]
    if as_json:
        print(json.dumps(rows))
        return
    headings = [str(run.path) for run in found]
    print_columns(headings, rows, ["step", "val_loss", "best_val_loss", *differing])


def _readable(paths: Sequence[Path]) -> tuple[list[RunFolder], list[dict[str, Any]]]:
    """The runs whose recipes can be read, and the recipes' fields."""
    runs: list[RunFolder] = []
    recipes: list[Recipe] = []
    errors: list[GptkitError] = []
    for path in paths:
        try:
            run = open_run(path)
            recipes.append(recipe_file.read(run.recipe))
            runs.append(run)
        except GptkitError as error:
            if not path.exists():
                raise
            errors.append(error)
    if not recipes:
        raise errors[0]
    for left_out in errors:
        say(f"left out: {left_out}")
    return runs, _fields(recipes)


def _fields(recipes: Sequence[Recipe]) -> list[dict[str, Any]]:
    """Every recipe's fields; options that a plugin got later have their defaults in each."""
    fields = [recipe.flat() for recipe in recipes]
    plugins = ("dataset.", "callbacks.")
    named = [{key for key in each if key.startswith(plugins)} for each in fields]
    if all(keys == named[0] for keys in named):
        return fields  # without importing the plugins
    return [_completed(recipe).flat() for recipe in recipes]


def _completed(recipe: Recipe) -> Recipe:
    """The recipe with all of its plugins' options; as it is if a plugin is missing."""
    from gptkit.recipe import build  # imports torch

    try:
        return build.build(recipe).recipe
    except (GptkitError, ValidationError):
        return recipe


def _history(environment: Mapping[str, Any]) -> Iterator[str]:
    """What a run began with, and what changed when it was resumed."""
    try:
        if began := history.began(environment):
            yield f"{'from':12} {began}"
    except ValueError:
        yield f"{'from':12} damaged"
    for changed in history.changed(environment):
        yield f"{'changed':12} at step {changed.step}: {changes.told(changed.set)}"


def _run_row(found: RunFolder, states: Mapping[Path, State | None] | None = None) -> dict[str, Any]:
    states = checkpoint.load_states(found.checkpoints) if states is None else states
    last: dict[str, Any] = {}
    for path, state in states.items():
        last = _checkpoint_row(path, state)
    best = checkpoint.best_of(states)
    best_state = states[best] if best else None
    return {
        "run": str(found.path),
        "step": last.get("step"),
        "val_loss": last.get("val_loss"),
        "best_val_loss": best_state.val_loss if best_state else None,
        "dataset": last.get("dataset"),
    }


def _checkpoint_row(path: Path, state: State | None) -> dict[str, Any]:
    if state is None:
        return {"checkpoint": path.name, "step": None, "val_loss": "damaged", "dataset": None}
    return {
        "checkpoint": path.name,
        "step": state.step,
        "val_loss": state.val_loss,
        "dataset": state.dataset,
    }
