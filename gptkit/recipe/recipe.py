"""Recipe: one experiment in one TOML file. Reading it reports all problems at once, with places.

This module knows only the tables that the core owns; `gptkit.recipe.build` adds the check of the
plugins' options.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gptkit.errors import Key, Problem, RecipeError
from gptkit.recipe import overriding, tuning
from gptkit.recipe.options import LoraOptions, ModelTable, Options, TrainOptions
from gptkit.recipe.problems import problems_of, written
from gptkit.recipe.registry import Kind
from gptkit.recipe.table import Report, read_table, source_name

OnError = Literal["stop", "warn"]
MOST_CALLBACKS = 100


class PluginSpec(BaseModel):
    """A plugin in a recipe: its name as `use`, and its options beside it."""

    model_config = ConfigDict(frozen=True, extra="allow", ser_json_inf_nan="constants")

    use: str = Field(min_length=1)
    """The plugin's entry-point name."""

    @property
    def options(self) -> dict[str, Any]:
        """The plugin's own options."""
        return dict(self.model_extra or {})


class CallbackSpec(PluginSpec):
    """A callback in a recipe."""

    on_error: OnError = "stop"
    """What an exception of the callback does: end the training, or print a warning."""


class Recipe(Options):
    """One experiment: a seed, a data set, the shape of the model, the training, the callbacks."""

    seed: int = Field(default=1337, ge=0, lt=2**63)
    """Determines initial weights, order of the data and dropout."""
    dataset: PluginSpec
    """Which data set plugin to use, with its options."""
    model: ModelTable = ModelTable()
    """The shape of the GPT, and what of it stays as it is."""
    lora: LoraOptions | None = None
    """Adapters, which are trained in place of the weights."""
    train: TrainOptions = TrainOptions()
    """The training."""
    callbacks: tuple[CallbackSpec, ...] = Field(default=(), strict=False, max_length=MOST_CALLBACKS)
    """Callbacks; they run in this order at every event."""

    def to_toml(self) -> str:
        """The recipe as TOML that `read` turns into an equal recipe."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def flat(self) -> dict[str, Any]:
        """Every field under the key by which `--set` reaches it, e.g. `train.steps`."""
        table = self.model_dump(mode="json", exclude_none=True)
        named = [(callback.pop("use"), callback) for callback in table.pop("callbacks")]
        uses = [use for use, _ in named]
        keys = [use if uses.count(use) == 1 else str(i) for i, use in enumerate(uses)]
        callbacks = {f"callbacks.{key}": c for key, (_, c) in zip(keys, named, strict=True)}
        table |= {"train.optimizer": table["train"].pop("optimizer")}
        fields: dict[str, Any] = {}
        for key, value in (table | callbacks).items():
            inner = value if isinstance(value, dict) else {"": value}
            fields |= {f"{key}.{name}".rstrip("."): v for name, v in inner.items()}
        return fields


PluginCheck = Callable[[Kind, PluginSpec, str], Sequence[Problem]]
"""(kind, the plugin in the recipe, its place) -> its problems, with keys below that place."""


def read(
    recipe: Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    check: PluginCheck | None = None,
    report: Report | None = None,
) -> Recipe:
    """Read and validate a recipe.

    Args:
        recipe: a TOML file, or the same as nested tables.
        overrides: `key=value` texts as given to `--set`; later ones win.
        check: checks each plugin that the recipe names; None skips that, so a run's recipe can be
            read if its plugins are not installed.
        report: shown a line for keys of earlier versions; None shows nothing.

    Raises:
        UsageError: the file is missing or an override is malformed.
        RecipeError: all problems of the contents.
    """
    table, sets = read_table(recipe, overrides, report)
    faults = partial(_problems, check=check)
    problems = overriding.settle(table, sets, faults)
    if problems:
        if sets:
            before = faults(read_table(recipe, ())[0])
            problems = overriding.blame(problems, sets, before)
        raise RecipeError(source_name(recipe), problems)
    return Recipe.model_validate(table)


def _problems(table: dict[str, Any], *, check: PluginCheck | None) -> list[Problem]:
    """All problems of a table."""
    try:
        recipe = Recipe.model_validate(table)
        problems = tuning.problems(recipe.model, recipe.lora)
    except ValidationError as error:
        problems = problems_of(error, Recipe, table)
    for kind, spec, key in _named_plugins(table) if check else ():
        assert check
        found = check(kind, spec, written(key))
        problems += [replace(problem, key=(*key, *problem.key)) for problem in found]
    return problems


def _named_plugins(table: Mapping[str, Any]) -> list[tuple[Kind, PluginSpec, Key]]:
    """The plugins in a table, which may have other faults; those without a name are left out."""
    callbacks = table.get("callbacks", [])
    named: list[tuple[Kind, Any, Key]] = [("dataset", table.get("dataset"), ("dataset",))]
    if isinstance(callbacks, list):
        first = callbacks[:MOST_CALLBACKS]
        named += [("callback", c, ("callbacks", i)) for i, c in enumerate(first)]
    found = []
    for kind, value, key in named:
        if isinstance(value, dict) and isinstance(value.get("use"), str) and value["use"]:
            own = {k: v for k, v in value.items() if kind == "dataset" or k != "on_error"}
            found.append((kind, PluginSpec.model_validate(own), key))
    return found
