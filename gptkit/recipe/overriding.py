"""Overrides: the `key=value` texts of `--set`, read by the type of the field that they set."""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from gptkit.errors import Key, Problem, UsageError
from gptkit.recipe import older
from gptkit.recipe.phrases import short
from gptkit.recipe.plain import NotPlainError, plain
from gptkit.recipe.problems import written

PART = r"[\w:-]+"
"""A part of an override's key; a callback's may be DISTRIBUTION:NAME."""
WHOLE = re.compile(rf"{PART}(\.{PART}|\[\d+\]){{0,32}}")
HINT = "for example --set train.steps=100 --set callbacks.NAME.OPTION=0.5"

Table = dict[str, Any]


@dataclass(frozen=True)
class Override:
    """One field to set."""

    key: str
    """As it was written."""
    text: str
    """Its value, as it was written."""
    value: Any
    """The text as TOML; what is not TOML is a text."""
    where: Key = ()
    """The field's place in the recipe's table, with callbacks by position."""

    def __str__(self) -> str:
        return short(f"--set {self.key}={self.text}")

    @property
    def parts(self) -> list[str]:
        """The parts of the key, as it was written."""
        return re.findall(PART, self.key)


def parse(override: str, *, form: str = "key=value", hint: str = HINT) -> Override:
    """Read a `key=value` text.

    Args:
        override: the text.
        form: what errors call its form.
        hint: what errors advise.

    Raises:
        UsageError: it is not of that form, or the value is empty.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not WHOLE.fullmatch(key):
        raise UsageError(f"--set {short(override)}: not of the form {form}", hint=hint)
    if not text.strip():
        raise UsageError(
            f"--set {short(key)}: is empty", hint=f"""an empty text is '{short(key)}=""'"""
        )
    try:
        return Override(key, text, _as_toml(text))
    except NotPlainError as error:
        raise UsageError(f"--set {short(key)}: {error}") from None


def apply(override: Override, table: Table) -> Override:
    """Set a field of the table; a callback is addressed by name or by position.

    Returns:
        The override, with the field's place in the table.
    """
    *parents, last = older.move_parts(override.parts, override.value)
    node: Any = table
    where: list[int | str] = []
    for part in parents:
        at, node = _descend(node, part, override, where)
        where.append(at)
    if isinstance(node, list):
        raise UsageError(f"{override}: {override.key} is not an option", hint=HINT)
    _check_table(node, override, where)
    node[last] = override.value
    return replace(override, where=(*where, last))


def settle(
    table: Table, overrides: Sequence[Override], problems: Callable[[Table], list[Problem]]
) -> list[Problem]:
    """Read each override whose value the field refuses as a text instead, if it takes that.

    So a folder called 2024 can be a path, and 1e5 a text.

    Args:
        table: with the overrides applied; changed.
        overrides: those that were applied.
        problems: finds the problems of a table.

    Returns:
        The problems that remain.
    """
    found = problems(table)
    refused = {problem.key for problem in found}
    last = {override.where: override for override in overrides}
    doubtful = [
        each for where, each in last.items() if where in refused and type(each.value) is not str
    ]
    if not doubtful:
        return found
    texts = deepcopy(table)
    for each in doubtful:
        _put(texts, each.where, each.text)
    refused = {problem.key for problem in problems(texts)}
    for each in doubtful:
        if each.where not in refused:
            _put(table, each.where, each.text)
    return problems(table)


def blame(
    problems: Sequence[Problem], overrides: Sequence[Override], before: Sequence[Problem]
) -> list[Problem]:
    """The problems; those that overrides made name these in place of the recipe.

    Args:
        problems: of the table with the overrides.
        overrides: those that were applied.
        before: the problems that the table has without them.
    """
    own = {(problem.key, problem.fault) for problem in before}
    return [p if (p.key, p.fault) in own else _blamed(p, overrides) for p in problems]


def _blamed(problem: Problem, overrides: Sequence[Override]) -> Problem:
    by = [each for each in overrides if _meet(each.where, problem.key)]
    if not by:
        return problem
    said = " ".join(dict.fromkeys(f"--set {short(each.key)}" for each in by))
    if all(each.where != problem.key for each in by):
        said += f": {problem.place}"
    return replace(problem, override=said)


def _meet(a: Key, b: Key) -> bool:
    """Whether one of two places is in the other."""
    common = min(len(a), len(b))
    return a[:common] == b[:common]


def _as_toml(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
        if parsed.keys() == {"value"}:
            return plain(parsed["value"])
    except (ValueError, RecursionError):
        pass
    return plain(text)


def _descend(
    node: Any, part: str, override: Override, where: Sequence[int | str]
) -> tuple[int | str, Any]:
    """A part's place in a node, and what is there; the node is at `where`."""
    if isinstance(node, list):
        if part.isascii() and part.isdecimal() and len(part) < 7 and int(part) < len(node):
            return int(part), node[int(part)]
        items = [(i, item) for i, item in enumerate(node) if isinstance(item, Mapping)]
        named = [(i, item) for i, item in items if item.get("use") == part]
        named = named or [
            (i, item) for i, item in items if str(item.get("use")).rpartition(":")[2] == part
        ]
        if len(named) == 1:
            return named[0]
        uses = ", ".join(str(item.get("use")) for _, item in items) or "none"
        fault = "appears twice; address it by position" if named else "is not in the recipe"
        raise UsageError(
            f'{override}: "{short(part)}" {fault}', hint=short(f"callbacks in the recipe: {uses}")
        )
    _check_table(node, override, where)
    return part, node.setdefault(part, {})


def _check_table(node: Any, override: Override, where: Sequence[int | str]) -> None:
    if not isinstance(node, dict):
        raise UsageError(f"{override}: {written(tuple(where))} is no table", hint=HINT)


def _put(table: Any, where: Key, value: Any) -> None:
    for part in where[:-1]:
        table = table[part]
    table[where[-1]] = value
