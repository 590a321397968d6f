"""A recipe's TOML and the overrides of `--set` as one table, whose values are not yet checked."""

import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from gptkit.errors import Problem, RecipeError, UsageError, closest
from gptkit.recipe import older
from gptkit.recipe.options import LENGTHS

KEY = r"[\w:-]+"
"""A part of an override's key; a callback's may be DISTRIBUTION:NAME."""
LENGTH = re.compile(rf"\s*train\.({'|'.join(LENGTHS)})\s*=")
Report = Callable[[str], None]
"""Shows the user a line of text."""
SET_HINT = "for example --set train.steps=100 --set callbacks.NAME.OPTION=0.5"


def read_table(
    recipe: Path | Mapping[str, Any], overrides: Iterable[str], report: Report | None = None
) -> dict[str, Any]:
    """A recipe's table with the overrides applied, all keys as this version names them.

    Args:
        recipe: a TOML file, or the same as nested tables, which stay as they are.
        overrides: `key=value` texts; later ones win.
        report: shown a line for keys of earlier versions; None shows nothing.

    Raises:
        UsageError: the file is missing or an override is malformed.
        RecipeError: the file is not TOML.
    """
    report = report or (lambda line: None)
    table = _parse(recipe) if isinstance(recipe, Path) else deepcopy(dict(recipe))
    moved = older.move_keys(table)
    if moved:
        shown = deepcopy(table)  # an override may yet choose Muon
        older.drop_unused(shown, moved)
        line, source = older.table_line(shown["train"]["optimizer"]), source_name(recipe)
        report(f"hint:  {source}: the optimizer's options have a table of their own now: {line}")
    overrides = list(overrides)
    train = table.get("train")
    if isinstance(train, dict) and any(LENGTH.match(override) for override in overrides):
        for name in LENGTHS:  # the file's, not those of other overrides, which would conflict
            train.pop(name, None)
    for override in overrides:
        moved += _apply(override, table, report)
    moved += older.move_keys(table)
    older.drop_unused(table, moved)
    return table


def source_name(recipe: Path | Mapping[str, Any]) -> str:
    """What errors call a recipe: its path, or "recipe" for tables."""
    return str(recipe) if isinstance(recipe, Path) else "recipe"


def parse_value(text: str) -> Any:
    """The value of `text` as TOML; what is not TOML is a string."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


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
        convert = f"gptkit convert {shlex.quote(str(path))} reads a nanoGPT config"
        advice = convert if path.suffix == ".py" else None
        raise RecipeError(str(path), [Problem("", f"not valid TOML: {error}", advice)]) from None


def _apply(override: str, table: dict[str, Any], report: Report) -> list[str]:
    """Set one `key=value` in the table; a callback is addressed by name or by position.

    Returns:
        The key, if it is one of an earlier version.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not re.fullmatch(rf"{KEY}(\.{KEY}|\[\d+\])*", key):
        raise UsageError(f"--set {override}: not of the form key=value", hint=SET_HINT)
    value = parse_value(text)
    written = re.findall(KEY, key)
    *parents, last = older.move_parts(written, value)
    node: Any = table
    for part in parents:
        node = _descend(node, part, override)
    if not isinstance(node, dict):
        raise UsageError(f"--set {override}: {key} is not an option", hint=SET_HINT)
    node[last] = value
    if [*parents, last] == written:
        return []
    report(f"hint:  --set {override} is now written --set {'.'.join([*parents, last])}={text}")
    return [last]


def _descend(node: Any, part: str, override: str) -> Any:
    if isinstance(node, dict):
        return node.setdefault(part, {})
    if isinstance(node, list):
        if part.isdigit() and int(part) < len(node):
            return node[int(part)]
        items = [item for item in node if isinstance(item, dict)]
        named = [item for item in items if item.get("use") == part]
        named = named or [i for i in items if str(i.get("use")).rpartition(":")[2] == part]
        if len(named) == 1:
            return named[0]
        uses = ", ".join(str(item.get("use")) for item in items) or "none"
        fault = "appears twice; address it by position" if named else "is not in the recipe"
        raise UsageError(
            f'--set {override}: "{part}" {fault}', hint=f"callbacks in the recipe: {uses}"
        )
    raise UsageError(f"--set {override}: no table named {part}", hint=SET_HINT)
