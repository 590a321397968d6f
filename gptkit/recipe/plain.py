"""Values as TOML has them, from TOML or from Python."""

import os
from collections.abc import Mapping
from datetime import date, time
from numbers import Integral, Real
from typing import Any

from gptkit.errors import Key

DEPTH = 32
"""How many tables and lists may be inside each other."""
BITS = 63
"""Whole numbers are -2**63 to 2**63 - 1, as in TOML."""


class NotPlainError(ValueError):
    """A value that TOML cannot have.

    Args:
        fault: what is wrong with it.
        key: its place.
    """

    def __init__(self, fault: str, key: Key = ()) -> None:
        super().__init__(fault)
        self.key = key


def plain(value: Any, key: Key = ()) -> Any:
    """A new value, with numbers of other libraries as Python's, and paths as texts.

    Args:
        value: of a recipe; None is a field that is not set.
        key: its place, for errors.

    Raises:
        NotPlainError: TOML has no such value, or it is nested too deeply.
    """
    if len(key) > DEPTH:
        raise NotPlainError("is nested too deeply", key[:1])
    match value:
        case None | bool() | date() | time():
            return value
        case str():
            return _text(value, key)
        case Integral():
            if not -(2**BITS) <= value < 2**BITS:
                raise NotPlainError("is beyond 64 bits, in which TOML has whole numbers", key)
            return int(value)
        case Real():
            return float(value)
        case os.PathLike():
            return plain(os.fspath(value), key)
        case Mapping():
            return {_name(name, key): plain(each, (*key, name)) for name, each in value.items()}
        case list() | tuple():
            return [plain(each, (*key, i)) for i, each in enumerate(value)]
    raise NotPlainError(f"is of the type {type(value).__name__}, which TOML has not", key)


def _name(name: Any, key: Key) -> str:
    if not isinstance(name, str):
        raise NotPlainError(f"has a key of the type {type(name).__name__}; keys are texts", key)
    return _text(name, key)


def _text(value: str, key: Key) -> str:
    try:
        return value.encode().decode()
    except UnicodeEncodeError:  # from a file name or an argument in another encoding
        raise NotPlainError("is not UTF-8", key) from None
