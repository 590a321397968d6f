"""A recipe's TOML and the overrides of `--set` as one table, whose values are not yet checked."""

import re
import tomllib
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from gptkit.errors import Problem, RecipeError, UsageError, closest
from gptkit.files import quote, read_file
from gptkit.recipe import older, overriding
from gptkit.recipe.options import LENGTHS
from gptkit.recipe.overriding import Override
from gptkit.recipe.phrases import short
from gptkit.recipe.plain import NotPlainError, plain
from gptkit.recipe.problems import BRACKETS, written

LIMIT = 1 << 20
"""The size of the largest recipe, in bytes."""
PLACE = re.compile(r"\(at line (\d+), column (\d+)\)")
PYTHON = {
    "True": "write true, in small letters",
    "False": "write false, in small letters",
    "None": "leave the line out",
}
"""Values of Python that people write in TOML, with what to do."""
LONG_KEY = re.compile(r"[\w'\"-]+(?:[ \t]*\.[ \t]*[\w'\"-]+)*")
ENCODINGS = {b"\xff\xfe\0\0": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""What begins with these bytes."""
Report = Callable[[str], None]
"""Shows the user a line of text."""


def read_table(
    recipe: Path | Mapping[str, Any], overrides: Iterable[str], report: Report | None = None
) -> tuple[dict[str, Any], list[Override]]:
    """A recipe's table with the overrides applied, all keys as this version names them.

    Args:
        recipe: a TOML file, or the same as nested tables, which stay as they are.
        overrides: `key=value` texts; later ones win.
        report: shown a line for keys of earlier versions; None shows nothing.

    Returns:
        The table, and the overrides with their places in it.

    Raises:
        UsageError: the file cannot be read, or an override is malformed.
        RecipeError: the file is not TOML, or a value is none that TOML has.
    """
    report = report or (lambda line: None)
    try:
        table = plain(_parse(recipe) if isinstance(recipe, Path) else recipe)
    except NotPlainError as error:
        problem = Problem(written(error.key), str(error), key=error.key)
        raise RecipeError(source_name(recipe), [problem]) from None
    if isinstance(recipe, Path) and older.in_older_run(recipe):
        table["model"] = older.rename_gelu(table.get("model", {}))
    moved = older.move_keys(table)
    if moved:
        shown = deepcopy(table)  # an override may yet choose Muon
        older.drop_unused(shown, moved)
        line, source = older.table_line(shown["train"]["optimizer"]), source_name(recipe)
        report(f"hint:  {source}: the optimizer's options have a table of their own now: {line}")
    parsed = [overriding.parse(override) for override in overrides]
    _make_room(table, parsed)
    sets = [overriding.apply(override, table) for override in parsed]
    for override in sets:
        now = written(override.where)
        if override.where[:2] == ("train", "optimizer") and override.parts != now.split("."):
            report(f"hint:  {override} is now written --set {now}={short(override.text)}")
            moved.append(str(override.where[-1]))
    moved += older.move_keys(table)
    older.drop_unused(table, moved)
    return table, sets


def source_name(recipe: Path | Mapping[str, Any]) -> str:
    """What errors call a recipe: its path, or "recipe" for tables."""
    return str(recipe) if isinstance(recipe, Path) else "recipe"


def _make_room(table: dict[str, Any], overrides: Sequence[Override]) -> None:
    """Drop what a recipe says and an override replaces by another key.

    That is the length of the training, and what only another optimizer takes.
    """
    train = table.get("train")
    if not isinstance(train, dict):
        return
    keys = {tuple(override.parts): override.value for override in overrides}
    if any(("train", name) in keys for name in LENGTHS):
        for name in LENGTHS:  # the file's, not those of other overrides, which would conflict
            train.pop(name, None)
    optimizer = train.get("optimizer")
    use = keys.get(("train", "optimizer", "use"), keys.get(("train", "optimizer")))
    if isinstance(optimizer, dict) and use == "adamw":
        for name in older.ONLY_MUON:
            optimizer.pop(name, None)


def _parse(path: Path) -> dict[str, Any]:
    text = _read(path)
    if any(key.group().count(".") > 1000 for key in LONG_KEY.finditer(text)):
        raise RecipeError(str(path), [Problem("", "not valid TOML: a key of 1,000 parts")])
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise RecipeError(str(path), [Problem("", "is nested too deeply")]) from None
    except ValueError as error:
        raise RecipeError(str(path), [_no_toml(path, text, error)]) from None


def _read(path: Path) -> str:
    """The text of a recipe.

    Raises:
        UsageError: it cannot be read, is too large or is not UTF-8.
    """
    hint = "name a TOML file"
    try:
        contents = read_file(path, limit=LIMIT)
        return contents.decode("utf-8-sig")
    except FileNotFoundError:
        near = closest(path.name, [p.name for p in path.parent.glob("*.toml")])
        hint = f'did you mean "{path.parent / near}"?' if near else "give the path of a TOML file"
        raise UsageError(f"{path}: no such recipe", hint=hint) from None
    except UnicodeDecodeError as error:
        byte = f"it is not UTF-8: bad byte 0x{contents[error.start]:02x} at offset {error.start}"
        kinds = (kind for start, kind in ENCODINGS.items() if contents.startswith(start))
        kind = next(kinds, "LATIN1")
        fault = byte if kind == "LATIN1" else f"it is {kind}, not UTF-8"
        if kind != "LATIN1" or b"\0" not in contents:  # else it is no text at all
            hint = f"save it as UTF-8, for example by iconv -f {kind} -t UTF-8 {quote(path)}"
    except OSError as error:
        fault = error.strerror or str(error)
    raise UsageError(f"{path}: cannot be read: {fault}", hint=hint)


def _no_toml(path: Path, text: str, error: ValueError) -> Problem:
    """What tomllib found, with what the user may have meant."""
    fault, hint = str(error), None
    if at := PLACE.search(fault):
        line = text.replace("\r\n", "\n").split("\n")[int(at[1]) - 1]
        hint = f"line {at[1]} is: {short(line)}{_meant(line, int(at[2]) - 1)}"
    if "integer string conversion" in fault:
        fault = "a whole number beyond 64 bits"
    if "('callbacks',)" in fault:
        hint = BRACKETS
    if path.suffix == ".py":
        hint = f"gptkit convert {quote(path)} reads a nanoGPT config"
    names = re.compile(r"\(('[^()]*'),?\)")  # a key as a tuple of its parts
    fault = names.sub(lambda m: "[" + ".".join(re.findall(r"'(.*?)'", m[1])) + "]", fault)
    return Problem("", f"not valid TOML: {short(fault)}", hint)


def _meant(line: str, column: int) -> str:
    """What may be wrong in a line that is no TOML, at the column where reading it ended."""
    character, rest = line[column : column + 1], line[column:]
    if character and not (character.isascii() and character.isprintable()):
        name = unicodedata.name(character, "a control character")
        return f"\nU+{ord(character):04X} in it is {name}: delete it or type it anew"
    if "\\" in line and '"' in line:
        return "\nin double quotes \\ has a meaning of its own: put a path in single quotes"
    return next((f"\n{words}" for start, words in PYTHON.items() if rest.startswith(start)), "")
