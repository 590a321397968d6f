"""A recipe with its plugins: `read` checks their options, `build` makes the objects."""

import itertools
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gptkit.errors import DataError, DownloadError, PluginError, Problem
from gptkit.plugin import Callback, Data, Dataset
from gptkit.recipe import recipe as recipe_file
from gptkit.recipe import registry
from gptkit.recipe.options import TrainOptions
from gptkit.recipe.phrases import short
from gptkit.recipe.problems import problems_of
from gptkit.recipe.recipe import OnError, PluginSpec, Recipe
from gptkit.recipe.registry import Entry
from gptkit.recipe.table import Report

Spec = TypeVar("Spec", bound=PluginSpec)


@dataclass(frozen=True)
class Plugins:
    """The objects that a recipe names."""

    recipe: Recipe
    """The recipe with every plugin's options filled in."""
    dataset: Dataset
    callbacks: Mapping[str, Callback]
    """In the recipe's order, by the name under which checkpoints keep their states: that in the
    recipe, for the second of one name NAME-2."""
    on_error: Mapping[str, OnError]
    """What an exception of a callback does, by the same names."""
    entries: tuple[Entry, ...]
    """Their entry points: the data set's, then the callbacks'."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What errors call each callback, by its name."""

    @property
    def changeable(self) -> frozenset[str]:
        """The fields of the data set that a resumed run may change, such as "dataset.path"."""
        return frozenset(f"dataset.{name}" for name in type(self.dataset).changeable)

    def load_data(self) -> Data:
        """Load the data set; a note names it on errors that do not name a place themselves.

        Raises:
            DataError: the data cannot be used.
            DownloadError: it cannot be downloaded.
            PluginError: the data set returned something else than `Data`.
        """
        try:
            with redirect_stdout(sys.stderr):  # what it prints is no result of a command
                data = self.dataset.load()
            if not isinstance(data, Data):
                raise PluginError(
                    f"load() should return Data, got {type(data).__name__}",
                    hint="return Data(train=..., val=..., codec=..., ...)",
                )
        except (DataError, DownloadError):
            raise
        except Exception as error:
            error.add_note(f"raised by the data set {self.entries[0]} in load")
            raise
        return data

    def missing_paths(self) -> list[str]:
        """The options of the data set that are paths at which there is nothing."""
        return [
            f"dataset.{name}: {short(str(value), 1000)}: no such file or folder"
            for name, value in self.dataset
            if isinstance(value, Path) and not os.path.exists(value)  # noqa: PTH110, never raises
        ]


def read(
    recipe: Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    report: Report | None = None,
) -> Recipe:
    """Read a recipe and check it together with its plugins' options.

    Args:
        recipe: a TOML file, or the same as nested tables.
        overrides: `key=value` texts as given to `--set`; later ones win.
        report: shown a line for keys of earlier versions; None shows nothing.

    Raises:
        UsageError: the file is missing, or an override is malformed.
        RecipeError: every problem in the contents at once.
    """
    return recipe_file.read(recipe, overrides, check=check_plugin, report=report)


def without_callbacks(recipe: Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Plugins:
    """The objects of a recipe but for its callbacks, which need not be installed.

    Args:
        recipe: a TOML file, or the same as nested tables.
        overrides: `key=value` texts as given to `--set`; later ones win.

    Raises:
        RecipeError: what is wrong with the rest.
    """

    def check(kind: registry.Kind, spec: PluginSpec, place: str) -> list[Problem]:
        return check_plugin(kind, spec, place) if kind == "dataset" else []

    found = recipe_file.read(recipe, overrides, check=check)
    return build(found.model_copy(update={"callbacks": ()}))


def check_plugin(kind: registry.Kind, spec: PluginSpec, place: str) -> list[Problem]:
    """The problems of a plugin in a recipe: its name, its import, its options."""
    try:
        plugin = registry.load(registry.find(kind, spec.use))
    except PluginError as error:
        return [Problem(f"{place}.use", str(error), error.hint, key=("use",))]
    try:
        plugin.model_validate(spec.options)
    except ValidationError as error:
        hint = f"gptkit plugins show {spec.use} lists its options"
        found = problems_of(error, plugin, spec.options, f"{place} ({spec.use})")
        return [replace(problem, hint=hint) for problem in found]
    return []


def build(recipe: Recipe) -> Plugins:
    """Make the objects that a checked recipe names; loads no data."""
    dataset_entry = registry.find("dataset", recipe.dataset.use)
    dataset = _make(dataset_entry, recipe.dataset)
    assert isinstance(dataset, Dataset)
    entries, specs = [dataset_entry], []
    callbacks: dict[str, Callback] = {}
    labels: dict[str, str] = {}
    on_error: dict[str, OnError] = {}
    for i, spec in enumerate(recipe.callbacks):
        entry = registry.find("callback", spec.use)
        callback = _make(entry, spec)
        assert isinstance(callback, Callback)
        entries.append(entry)
        name = unused_name(entry.name, callbacks)
        callbacks[name], on_error[name] = callback, spec.on_error
        labels[name] = f"callbacks[{i}] ({entry.name}, {entry.origin})"
        specs.append(_complete(spec, callback))
    complete = {"dataset": _complete(recipe.dataset, dataset), "callbacks": tuple(specs)}
    recipe = recipe.model_copy(update=complete)
    return Plugins(recipe, dataset, callbacks, on_error, tuple(entries), labels)


def unset(recipe: Recipe) -> Recipe:
    """The recipe as it would be if it only named its plugins and its optimizer.

    Options that must be given are left out.
    """
    optimizer = {"optimizer": type(recipe.train.optimizer)()}
    return Recipe(
        dataset=_unset("dataset", recipe.dataset),
        train=TrainOptions().model_copy(update=optimizer),
        callbacks=tuple(_unset("callback", spec) for spec in recipe.callbacks),
    )


def unused_name(name: str, taken: Collection[str]) -> str:
    """The name, or the first of NAME-2, NAME-3 and so on that is not taken."""
    numbered = (f"{name}-{i}" for i in itertools.count(2))
    return next(new for new in itertools.chain([name], numbered) if new not in taken)


def _make(entry: Entry, spec: PluginSpec) -> BaseModel:
    return registry.load(entry).model_validate(spec.options)


def _unset(kind: registry.Kind, spec: Spec) -> Spec:
    """The plugin's name with the options that it has if none are given."""
    plugin = registry.load(registry.find(kind, spec.use))
    return _complete(type(spec)(use=spec.use), plugin.model_construct())


def _complete(spec: Spec, plugin: BaseModel) -> Spec:
    """The plugin's name with all of its options."""
    options = plugin.model_dump(mode="json", exclude_none=True)
    core = spec.model_dump(include=set(type(spec).model_fields))
    return type(spec).model_validate(core | options)
