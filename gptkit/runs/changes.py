"""What a resumed run may change in its recipe, and how that is written down."""

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import tomli_w

from gptkit.errors import RunError, UsageError
from gptkit.files import quote, write_atomically, write_json, writing
from gptkit.recipe.options import ModelOptions
from gptkit.recipe.plain import NotPlainError, plain
from gptkit.recipe.recipe import Recipe
from gptkit.runs import history, run_folder
from gptkit.runs.run_folder import RunFolder
from gptkit.runs.state import State

Overrides = Sequence[str] | Mapping[str, Any]
"""Fields of a recipe to change: `key=value` texts as for `--set`, one or more, or values by key."""

VALUES = "text, a number, true, false, or a list"
KEEP_WEIGHTS = {"seed", "model.dropout", "model.freeze"}
"""Fields with which the weights of the run still fit, besides those of the optimizer."""


class Change(NamedTuple):
    """A field that differs between two recipes; None where a recipe has no such field."""

    old: Any
    new: Any


def texts(overrides: Overrides) -> list[str]:
    """Overrides as `key=value` texts.

    Raises:
        UsageError: a value has no form in TOML or is a table.
    """
    if isinstance(overrides, Mapping):
        return [f"{key}={_toml(key, value)}" for key, value in overrides.items()]
    return [overrides] if isinstance(overrides, str) else list(overrides)


def between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Change]:
    """The fields in which flat recipes differ, with both values."""
    found = {key: Change(before.get(key), after.get(key)) for key in {**before, **after}}
    return {key: change for key, change in found.items() if change.old != change.new}


def told(fields: Mapping[str, Any]) -> str:
    """Fields with their new values, in one line."""
    return ", ".join(
        f"{key} unset" if value is None else f"{key}={value}" for key, value in fields.items()
    )


def check(
    run: RunFolder,
    changes: Mapping[str, Change],
    overrides: Sequence[str],
    *,
    changeable: Collection[str],
) -> None:
    """Raise a UsageError if a resumed run cannot change one of these fields.

    Args:
        run: what is resumed.
        changes: the fields.
        overrides: how they were set, for the hint.
        changeable: those of the data set that may change.
    """
    fixed = {key: change for key, change in changes.items() if not _may_change(key, changeable)}
    if not fixed:
        return
    if "train.optimizer.use" in fixed:  # the options of another optimizer come and go with it
        fixed = {key: change for key, change in fixed.items() if None not in change}
    words = ["gptkit", "train", str(run.recipe)]
    if all(key in KEEP_WEIGHTS or key.startswith(("train.", "lora.")) for key in fixed):
        words += ["--from", str(run.path)]
    for override in overrides:
        words += ["--set", override]
    raise UsageError(
        "\n".join(
            f"{run.path}: a resumed run keeps its {key}: {old!r}, not {new!r}"
            for key, (old, new) in fixed.items()
        ),
        hint=f"start another run: {shlex.join(words)}",
    )


def write(run: RunFolder, recipe: Recipe, changes: Mapping[str, Change], *, step: int) -> None:
    """Replace the run's recipe; note in environment.json what changed at which step, and the time.

    Raises:
        RunError: the folder is not writable, or the disk is full.
    """
    about = run.read_environment() | {"trained": run_folder.now()}
    if changes:
        write_recipe(run, recipe)
        noted = {"step": step, "set": {key: change.new for key, change in changes.items()}}
        earlier = [each.model_dump() for each in history.changed(about)]
        about |= {"changes": [*earlier, noted], "format": history.FORMAT}
    write_json(run.environment, about | {"recipe": recipe.flat()})


def write_recipe(run: RunFolder, recipe: Recipe) -> None:
    """Write the run's complete recipe atomically.

    Raises:
        RunError: the folder is not writable, or the disk is full.
    """
    with writing(run.recipe):
        write_atomically(run.recipe, recipe.to_toml().encode())


def trained_with(
    run: RunFolder, fields: Mapping[str, Any], *, unset: Mapping[str, Any], state: State | None
) -> dict[str, Any]:
    """The fields that the run was trained with so far, whatever its recipe.toml says now.

    Args:
        run: its environment.json has them, but for those that were not set.
        fields: what recipe.toml says now, which counts where nothing else tells.
        unset: what these fields are if a recipe does not set them.
        state: of the newest checkpoint, which tells of some for a run of an earlier version.
    """
    environment = run.read_environment()
    found = environment.get("recipe")
    if isinstance(found, dict) and found:
        if "format" not in environment and found.get("model.mlp") == "gelu":
            found = found | {"model.mlp": "gelu_tanh"}  # as `older` reads the recipe.toml beside it
        return {key: unset.get(key) for key in fields} | found
    return {**fields, **(_recorded_in(state) if state else {})}


def check_dataset(run: RunFolder, recipe: Recipe, *, changeable: Collection[str]) -> None:
    """Raise a RunError if recipe.toml has other options of the data set than the run began with.

    Args:
        run: its environment.json has those that it began with.
        recipe: what recipe.toml says now.
        changeable: the fields of the data set that may change.
    """
    found = run.read_environment().get("recipe")
    recorded = found if isinstance(found, dict) else {}
    for key, change in between(recorded, recipe.flat()).items():
        if key in recorded and key.startswith("dataset.") and key not in changeable:
            raise RunError(
                f"{run.path}: was trained with {key} {change.old!r}, recipe.toml has "
                f"{change.new!r}",
                hint=f"set it back in {quote(run.recipe)}",
            )


def since(run: RunFolder, step: int) -> set[str]:
    """The fields that were changed at this step or later, so that no checkpoint has them yet."""
    return {
        key
        for changed in history.changed(run.read_environment())
        if changed.step >= step
        for key in changed.set
    }


def _may_change(key: str, changeable: Collection[str]) -> bool:
    table, _, rest = key.partition(".")
    return (
        key in changeable
        or table == "callbacks"
        or (table == "train" and not rest.startswith("optimizer"))
    )


def _toml(key: str, value: Any) -> str:
    try:
        text = tomli_w.dumps({"value": plain(value)})
    except NotPlainError as error:
        raise UsageError(f"{key}: {error}", hint=VALUES) from None
    except TypeError:  # all that `plain` lets pass besides
        raise UsageError(f"{key}: None is no value of TOML", hint=VALUES) from None
    if not text.startswith("value = "):
        raise UsageError(f"{key}: is a table", hint=f'set its fields, such as "{key}.NAME"')
    return text.removeprefix("value = ").strip()


def _recorded_in(state: State) -> dict[str, Any]:
    """The fields that a checkpoint tells of: the model's, and the numbers of the optimizer."""
    fields = {f"model.{name}": getattr(state.config, name) for name in ModelOptions.model_fields}
    hidden = [group for group in state.optimizer_groups if "momentum" in group]
    others = [group for group in state.optimizer_groups if "momentum" not in group]
    numbers = {
        "learning_rate": _numbers(others, "initial_lr"),
        "weight_decay": _numbers(others, "weight_decay"),
        "muon_learning_rate": _numbers(hidden, "initial_lr"),
        "muon_momentum": _numbers(hidden, "momentum"),
    }
    return fields | {f"train.optimizer.{name}": max(n) for name, n in numbers.items() if n}


def _numbers(groups: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [group[key] for group in groups if isinstance(group.get(key), int | float)]
