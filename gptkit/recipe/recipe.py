"""Recipe: one experiment in one TOML file. Reading it reports all problems at once, with places.

This module knows only the tables that the core owns; `gptkit.recipe.build` adds the check of the
plugins' options.
"""

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from gptkit.errors import Problem, RecipeError, UsageError, closest
from gptkit.recipe.options import ModelOptions, Options, TrainOptions
from gptkit.recipe.registry import Kind


class PluginSpec(BaseModel):
    """A plugin in a recipe: its name as `use`, and its options beside it."""

    model_config = ConfigDict(frozen=True, extra="allow", ser_json_inf_nan="constants")

    use: str = Field(min_length=1)
    """The plugin's entry-point name."""

    @property
    def options(self) -> dict[str, Any]:
        """Everything beside `use`."""
        return dict(self.model_extra or {})


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
    callbacks: tuple[PluginSpec, ...] = Field(default=(), strict=False)
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
        fields: dict[str, Any] = {}
        for key, value in (table | callbacks).items():
            inner = value if isinstance(value, dict) else {"": value}
            fields |= {f"{key}.{name}".rstrip("."): v for name, v in inner.items()}
        return fields


_SET_HINT = "for example --set train.steps=100 --set callbacks.NAME.OPTION=0.5"
_UNION_TAGS = {"bool", "int", "float", "str"}
"""Parts that pydantic adds to a location inside a union; no option has such a name."""

PluginCheck = Callable[[Kind, PluginSpec, str], Sequence[Problem]]
"""(kind, the plugin in the recipe, its place) -> its problems."""


def read(path: Path, overrides: Iterable[str] = (), *, check: PluginCheck | None = None) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: a TOML file.
        overrides: `key=value` texts as given to `--set`; later ones win.
        check: checks each plugin that the recipe names; None skips that, so a run's recipe can be
            read if its plugins are not installed.

    Raises:
        UsageError: the file is missing or an override is malformed.
        RecipeError: all problems of the contents.
    """
    table = _parse(path)
    for override in overrides:
        _apply(override, table)
    problems: list[Problem] = []
    recipe = None
    try:
        recipe = Recipe.model_validate(table)
    except ValidationError as error:
        problems += problems_of(error, Recipe)
    if check:
        for named in _named_plugins(table):
            problems += check(*named)
    if problems or recipe is None:
        raise RecipeError(str(path), problems)
    return recipe


def problems_of(error: ValidationError, model: type[BaseModel], place: str = "") -> list[Problem]:
    """Pydantic's errors about `model` as problems of a recipe, below `place`."""
    faults: dict[str, list[str]] = {}
    for details in error.errors(include_url=False):
        problem = _problem(details, model, place)
        faults.setdefault(problem.place, []).append(problem.fault)
    return [Problem(where, "; or ".join(texts)) for where, texts in faults.items()]


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = closest(path.name, [p.name for p in path.parent.glob("*.toml")])
        hint = f'did you mean "{path.parent / near}"?' if near else "give the path of a TOML file"
        raise UsageError(f"{path}: no such recipe", hint=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        fault = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot be read: {fault}", hint="name a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(str(path), [Problem("", f"not valid TOML: {error}")]) from None


def _apply(override: str, table: dict[str, Any]) -> None:
    """Set one `key=value` in the table; a callback is addressed by name or by position."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+|\[\d+\])*", key):
        raise UsageError(f"--set {override}: not of the form key=value", hint=_SET_HINT)
    *parents, last = re.findall(r"[\w-]+", key)
    node: Any = table
    for part in parents:
        node = _descend(node, part, override)
    if not isinstance(node, dict):
        raise UsageError(f"--set {override}: {key} is not an option", hint=_SET_HINT)
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    node[last] = parsed["value"] if parsed.keys() == {"value"} else text


def _descend(node: Any, part: str, override: str) -> Any:
    if isinstance(node, dict):
        return node.setdefault(part, {})
    if isinstance(node, list):
        if part.isdigit() and int(part) < len(node):
            return node[int(part)]
        named = [item for item in node if isinstance(item, dict) and item.get("use") == part]
        if len(named) == 1:
            return named[0]
        uses = ", ".join(str(i.get("use")) for i in node if isinstance(i, dict)) or "none"
        fault = "appears twice; address it by position" if named else "is not in the recipe"
        raise UsageError(
            f'--set {override}: "{part}" {fault}', hint=f"callbacks in the recipe: {uses}"
        )
    raise UsageError(f"--set {override}: no table named {part}", hint=_SET_HINT)


def _named_plugins(table: Mapping[str, Any]) -> list[tuple[Kind, PluginSpec, str]]:
    """The plugins in a table, which may have other faults; those without a name are left out."""
    callbacks = table.get("callbacks", [])
    named: list[tuple[Kind, Any, str]] = [("dataset", table.get("dataset"), "dataset")]
    if isinstance(callbacks, list):
        named += [("callback", c, f"callbacks[{i}]") for i, c in enumerate(callbacks)]
    return [
        (kind, PluginSpec.model_validate(value), place)
        for kind, value, place in named
        if isinstance(value, dict) and isinstance(value.get("use"), str) and value["use"]
    ]


def _problem(details: ErrorDetails, model: type[BaseModel], place: str) -> Problem:
    where = place
    for part in details["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif not re.search(r"[^\w-]", part) and part not in _UNION_TAGS:
            where += f".{part}" if where else part
    fault = details["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if details["type"] == "extra_forbidden":
        return Problem(where, _unknown_key(details["loc"], model))
    if details["type"] == "missing":
        return Problem(where, "is required")
    if details["type"] != "value_error":
        fault += f", got {details['input']!r}"
    return Problem(where, fault[0].lower() + fault[1:])


def _unknown_key(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    for part in loc[:-1]:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    known = sorted(model.model_fields)
    near = closest(str(loc[-1]), known)
    return "unknown key; " + (
        f'did you mean "{near}"?' if near else f"known: {', '.join(known) or 'none'}"
    )
