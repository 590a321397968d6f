"""Runs: a list, one in detail, several compared."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gptkit.errors import CheckpointError, GptkitError
from gptkit.recipe import recipe as recipe_file
from gptkit.recipe.recipe import Recipe
from gptkit.runs import changes, checkpoint
from gptkit.runs.run_folder import RunFolder
from gptkit.show.tables import print_columns, print_rows
from gptkit.terminal import print_result


def print_runs(found: Sequence[RunFolder], *, as_json: bool) -> None:
    """Print one line per run."""
    columns = ("run", "step", "val_loss", "best_val_loss", "dataset")
    print_rows([_run_row(run) for run in found], columns, as_json=as_json)


def print_run(found: RunFolder, *, as_json: bool) -> None:
    """Print a run's environment, checkpoints and recipe."""
    environment = found.read_environment()
    steps = [_checkpoint_row(path) for path in checkpoint.step_folders(found.checkpoints)]
    recipe = _recipe_text(found)
    if as_json:
        values = _run_row(found) | {"environment": environment, "checkpoints": steps}
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
    try:
        return recipe_file.read(found.recipe).to_toml()
    except GptkitError:
        return found.recipe.read_text(encoding="utf-8")


def print_comparison(found: Sequence[RunFolder], *, as_json: bool) -> None:
    """Print runs side by side: losses, and the recipe fields in which they differ."""
    recipes = _fields([recipe_file.read(run.recipe) for run in found])
    keys = dict.fromkeys(key for fields in recipes for key in fields)
    differing = [k for k in keys if any(r.get(k) != recipes[0].get(k) for r in recipes[1:])]
    rows = [
        _run_row(run) | {key: fields.get(key) for key in differing}
        for run, fields in zip(found, recipes, strict=True)
    ]
    if as_json:
        print(json.dumps(rows))
        return
    headings = [str(run.path) for run in found]
    print_columns(headings, rows, ["step", "val_loss", "best_val_loss", *differing])


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
    if begun := environment.get("from"):
        weights = f", weights {begun['weights']}" if begun.get("weights") else ""
        yield f"{'from':12} step {begun['step']} of {begun['run']}{weights}"
    for changed in environment.get("changes", ()):
        yield f"{'changed':12} at step {changed['step']}: {changes.told(changed['set'])}"


def _run_row(found: RunFolder) -> dict[str, Any]:
    steps = [_checkpoint_row(path) for path in checkpoint.step_folders(found.checkpoints)]
    last: dict[str, Any] = steps[-1] if steps else {}
    best = checkpoint.best(found.checkpoints)
    return {
        "run": str(found.path),
        "step": last.get("step"),
        "val_loss": last.get("val_loss"),
        "best_val_loss": checkpoint.load_state(best).val_loss if best else None,
        "dataset": last.get("dataset"),
    }


def _checkpoint_row(path: Path) -> dict[str, Any]:
    try:
        state = checkpoint.load_state(path)
    except CheckpointError:
        return {"checkpoint": path.name, "step": None, "val_loss": "damaged", "dataset": None}
    return {
        "checkpoint": path.name,
        "step": state.step,
        "val_loss": state.val_loss,
        "dataset": state.dataset,
    }
