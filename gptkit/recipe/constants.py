"""The constants of a Python file, found by parsing it. The file is never executed."""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptkit.errors import UsageError
from gptkit.files import read_file

LIMIT = 1 << 20
"""The size of the largest file, in bytes."""
LARGEST = 2**64
"""Larger results of arithmetic are refused, so that a file cannot cost minutes."""

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
}


class _NotConstantError(Exception):
    """An expression is not a constant."""


@dataclass(frozen=True)
class Constants:
    """What a file assigns on its top level."""

    values: dict[str, Any]
    """By name; the last assignment counts."""
    unread: dict[str, str]
    """Assignments that are not constants: by name, their source with the line's number."""
    skipped: tuple[str, ...]
    """Other statements that could change a value: their first lines, with their numbers."""


def read_constants(path: Path, known: Mapping[str, Any]) -> Constants:
    """Read the assignments on the top level of a Python file: literals, and arithmetic with them.

    Args:
        path: the file.
        known: names that expressions may use besides those that the file assigns before.

    Raises:
        UsageError: the file cannot be read, or is not Python.
    """
    try:
        text = read_file(path, limit=LIMIT).decode("utf-8-sig")
        statements = ast.parse(text, path.name).body
    except SyntaxError as error:
        place = f"line {error.lineno}: {error.msg}" if error.lineno else error.msg
        raise UsageError(f"{path}: is not a Python file: {place}") from None
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file", hint="give the path of a config file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path}: is not a Python file: {str(error) or 'too nested'}") from None
    found = Constants({}, {}, ())
    skipped = []
    for statement in statements:
        assigned = _assigned(statement)
        source = f"line {statement.lineno}: {_first_line(text, statement)}"
        if not assigned and not _has_no_effect(statement):
            skipped.append(source)
        names = {**known, **found.values}  # as before the statement, also in a, b = b, a
        for name, expression in assigned:
            found.values.pop(name, None)
            found.unread.pop(name, None)
            try:
                found.values[name] = _value(expression, names)
            except (_NotConstantError, ArithmeticError, TypeError, ValueError, RecursionError):
                found.unread[name] = source
    return Constants(found.values, found.unread, tuple(skipped))


def _assigned(statement: ast.stmt) -> list[tuple[str, ast.expr]]:
    """The names that a statement assigns, with their expressions; empty if it does more."""
    match statement:
        case ast.Assign(targets=targets, value=value):
            pairs = [pair for target in targets for pair in _pairs(target, value)]
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            pairs = _pairs(target, value)
        case _:
            return []
    named = [(target.id, value) for target, value in pairs if isinstance(target, ast.Name)]
    return named if len(named) == len(pairs) else []


def _pairs(target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    """The target with its value; of a tuple, each part."""
    match target, value:
        case ast.Tuple(elts=names), ast.Tuple(elts=parts) if len(names) == len(parts):
            return list(zip(names, parts, strict=True))
    return [(target, value)]


def _has_no_effect(statement: ast.stmt) -> bool:
    """Imports alone, pass, and texts that stand for themselves."""
    text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return text or isinstance(statement, ast.Import | ast.ImportFrom | ast.Pass)


def _first_line(text: str, statement: ast.stmt) -> str:
    return (ast.get_source_segment(text, statement) or "").partition("\n")[0]


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            return [_value(part, names) for part in parts]
        case ast.Call(func=ast.Name(id="int" | "float" as kind), args=[part], keywords=[]):
            return (int if kind == "int" else float)(_number(part, names))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_number(operand, names))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _number(left, names), _number(right, names)
            if isinstance(op, ast.Pow) and (abs(b) > 64 or abs(a) > LARGEST):
                raise _NotConstantError
            return _bounded(_OPERATORS[type(op)](a, b))
    raise _NotConstantError


def _number(node: ast.expr, names: Mapping[str, Any]) -> Any:
    value = _value(node, names)
    if not isinstance(value, int | float):
        raise _NotConstantError
    return value


def _bounded(value: Any) -> Any:
    if isinstance(value, complex) or (isinstance(value, int) and abs(value) > LARGEST):
        raise _NotConstantError
    return value
