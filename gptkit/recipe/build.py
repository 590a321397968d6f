"""A recipe with its plugins: `read` checks their options, `build` makes the objects."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from gptkit.errors import PluginError, Problem
from gptkit.plugin import Callback, Dataset
from gptkit.recipe import recipe as recipe_file
from gptkit.recipe import registry
from gptkit.recipe.recipe import PluginSpec, Recipe
from gptkit.recipe.registry import Entry


@dataclass(frozen=True)
class Plugins:
    """The objects that a recipe names."""

    recipe: Recipe
    """The recipe with every plugin's options filled in."""
    dataset: Dataset
    callbacks: Mapping[str, Callback]
    """By the name that errors use, in the recipe's order."""
    entries: tuple[Entry, ...]
    """Their entry points: the data set's, then the callbacks'."""


def read(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and check it together with its plugins' options.

    Args:
        path: a TOML file.
        overrides: `key=value` texts as given to `--set`; later ones win.

    Raises:
        UsageError: the file is missing, or an override is malformed.
        RecipeError: every problem in the contents at once.
    """
    return recipe_file.read(path, overrides, check=check_plugin)


def check_plugin(kind: registry.Kind, spec: PluginSpec, place: str) -> list[Problem]:
    """The problems of a plugin in a recipe: its name, its import, its options."""
    try:
        plugin = registry.load(registry.find(kind, spec.use))
    except PluginError as error:
        return [Problem(f"{place}.use", str(error), error.hint)]
    try:
        plugin.model_validate(spec.options)
    except ValidationError as error:
        hint = f"gptkit plugins show {spec.use} lists its options"
        found = recipe_file.problems_of(error, plugin, f"{place} ({spec.use})")
        return [Problem(problem.place, problem.fault, hint) for problem in found]
    return []


def build(recipe: Recipe) -> Plugins:
    """Make the objects that a checked recipe names; loads no data."""
    dataset_entry = registry.find("dataset", recipe.dataset.use)
    dataset = _make(dataset_entry, recipe.dataset)
    assert isinstance(dataset, Dataset)
    entries, callbacks, specs = [dataset_entry], {}, []
    for i, spec in enumerate(recipe.callbacks):
        entry = registry.find("callback", spec.use)
        callback = _make(entry, spec)
        assert isinstance(callback, Callback)
        entries.append(entry)
        callbacks[f"callbacks[{i}] ({entry.name}, {entry.origin})"] = callback
        specs.append(_complete(spec, callback))
    complete = {"dataset": _complete(recipe.dataset, dataset), "callbacks": tuple(specs)}
    return Plugins(recipe.model_copy(update=complete), dataset, callbacks, tuple(entries))


def _make(entry: Entry, spec: PluginSpec) -> BaseModel:
    return registry.load(entry).model_validate(spec.options)


def _complete(spec: PluginSpec, plugin: BaseModel) -> PluginSpec:
    """The plugin's name with all of its options."""
    options = plugin.model_dump(mode="json", exclude_none=True)
    return PluginSpec.model_validate({"use": spec.use, **options})
