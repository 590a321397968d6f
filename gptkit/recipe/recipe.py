"""Recipe: one experiment in one TOML file. Reading it reports all problems at once, with places.

This module knows only the tables that the core owns; `gptkit.recipe.build` adds the check of the
plugins' options.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from gptkit.errors import Problem, RecipeError, closest
from gptkit.recipe.older import MOVED
from gptkit.recipe.options import OPTIMIZERS, ModelOptions, MuonOptions, Options, TrainOptions
from gptkit.recipe.registry import Kind
from gptkit.recipe.table import Report, read_table, source_name

OnError = Literal["stop", "warn"]


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
    model: ModelOptions = ModelOptions()
    """The shape of the GPT."""
    train: TrainOptions = TrainOptions()
    """The training."""
    callbacks: tuple[CallbackSpec, ...] = Field(default=(), strict=False)
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


OPTIMIZER = ("train", "optimizer")
"""Where a recipe has the table of the optimizer; pydantic adds the optimizer's name after it."""
_UNION_TAGS = {"bool", "int", "float", "str"}
"""Parts that pydantic adds to a location inside a union; no option has such a name."""

PluginCheck = Callable[[Kind, PluginSpec, str], Sequence[Problem]]
"""(kind, the plugin in the recipe, its place) -> its problems."""


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
    table = read_table(recipe, overrides, report)
    problems: list[Problem] = []
    valid = None
    try:
        valid = Recipe.model_validate(table)
    except ValidationError as error:
        problems += problems_of(error, Recipe)
    if check:
        for named in _named_plugins(table):
            problems += check(*named)
    if problems or valid is None:
        raise RecipeError(source_name(recipe), problems)
    return valid


def problems_of(error: ValidationError, model: type[BaseModel], place: str = "") -> list[Problem]:
    """Pydantic's errors about `model` as problems of a recipe, below `place`."""
    faults: dict[str, list[str]] = {}
    for details in error.errors(include_url=False):
        problem = _problem(details, model, place)
        faults.setdefault(problem.place, []).append(problem.fault)
    return [Problem(where, "; or ".join(texts)) for where, texts in faults.items()]


def _named_plugins(table: Mapping[str, Any]) -> list[tuple[Kind, PluginSpec, str]]:
    """The plugins in a table, which may have other faults; those without a name are left out."""
    callbacks = table.get("callbacks", [])
    named: list[tuple[Kind, Any, str]] = [("dataset", table.get("dataset"), "dataset")]
    if isinstance(callbacks, list):
        named += [("callback", c, f"callbacks[{i}]") for i, c in enumerate(callbacks)]
    found = []
    for kind, value, place in named:
        if isinstance(value, dict) and isinstance(value.get("use"), str) and value["use"]:
            own = {k: v for k, v in value.items() if kind == "dataset" or k != "on_error"}
            found.append((kind, PluginSpec.model_validate(own), place))
    return found


def _problem(details: ErrorDetails, model: type[BaseModel], place: str) -> Problem:
    where = _place(details["loc"], place)
    fault = details["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if details["type"] == "extra_forbidden":
        return Problem(where, _unknown_key(details["loc"], model))
    if details["type"] == "missing":
        return Problem(where, "is required")
    if details["type"] == "union_tag_invalid":
        key, known = details["ctx"]["discriminator"].strip("'"), details["ctx"]["expected_tags"]
        fault = f"should be {known.replace(', ', ' or ')}, got {details['input'][key]!r}"
        return Problem(f"{where}.{key}", fault)
    if details["type"] != "value_error":
        fault += f", got {details['input']!r}"
    return Problem(where, fault[0].lower() + fault[1:])


def _place(loc: tuple[int | str, ...], place: str) -> str:
    """A location of pydantic's as a place in the recipe, below `place`."""
    if loc[:2] == OPTIMIZER:
        loc = OPTIMIZER + loc[3:]
    for part in loc:
        if isinstance(part, int):
            place += f"[{part}]"
        elif not re.search(r"[^\w-]", part) and part not in _UNION_TAGS:
            place += f".{part}" if place else part
    return place


def _unknown_key(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    key = str(loc[-1])
    if loc[:-1] == ("train",) and key in MOVED:
        return "is an option of [train.optimizer], which has it, too; remove it here"
    if loc[:-1] == (*OPTIMIZER, "adamw") and key in MuonOptions.model_fields:
        return 'is an option of "muon"; remove it, or set use = "muon"'
    for part in map(str, loc[:-1]):
        field = model.model_fields.get(part)
        inner: Any = field.annotation if field else None
        if model is TrainOptions and part in OPTIMIZERS:
            inner = OPTIMIZERS[part]
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    known = sorted(model.model_fields)
    near = closest(key, known)
    return "unknown key; " + (
        f'did you mean "{near}"?' if near else f"known: {', '.join(known) or 'none'}"
    )
