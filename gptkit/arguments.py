"""The arguments of public functions: a wrong type is refused in words, before anything is done."""

import errno
import functools
import inspect
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin

from gptkit.errors import UsageError
from gptkit.recipe.phrases import shown

P = ParamSpec("P")
R = TypeVar("R")

_WORDS: dict[Any, str] = {
    type(None): "None",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    os.PathLike: "a path",
    Mapping: "a dict",
}
_ABSTRACT: dict[Any, type] = {int: Integral, float: Real}
"""What numbers of other libraries are, too."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose arguments are of the types in its signature; others are a UsageError."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            parameter = signature.parameters[name]
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                _check(name, value, parameter.annotation)
        return function(*args, **kwargs)

    return call


def _check(name: str, value: Any, annotation: Any) -> None:
    kinds = [*_alternatives(annotation)]
    if not any(_fits(value, kind) for kind in kinds):
        *others, last = dict.fromkeys(_words(kind) for kind in kinds)
        words = f"{', '.join(others)} or {last}" if others else last
        raise UsageError(f"{name} should be {words}, got {shown(value)}")
    is_path = any(get_origin(kind) is os.PathLike for kind in kinds)
    if is_path and isinstance(value, str | os.PathLike):
        _check_path(name, os.fspath(value))


def _check_path(name: str, path: str | bytes) -> None:
    """Raise a UsageError for a text that can be the path of nothing."""
    try:
        os.lstat(path)
    except UnicodeEncodeError:
        raise UsageError(f"{name} has characters that no path has: {shown(path)}") from None
    except ValueError:
        raise UsageError(f"{name} has a null character: {shown(path)}") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"{name} is too long: {shown(path)}") from None


def _alternatives(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        for kind in get_args(annotation):
            yield from _alternatives(kind)
    else:
        yield annotation


def _fits(value: Any, kind: Any) -> bool:
    if kind in (Any, inspect.Parameter.empty):
        return True
    origin = get_origin(kind) or kind
    if isinstance(value, bool):
        return origin is bool
    if origin is Sequence:
        (item,) = get_args(kind)
        return isinstance(value, Sequence) and all(_fits(each, item) for each in value)
    return isinstance(value, _ABSTRACT.get(origin, origin))


def _words(kind: Any) -> str:
    origin = get_origin(kind) or kind
    if origin is Sequence:
        return f"a list of {_words(get_args(kind)[0]).removeprefix('a ')}s"
    return _WORDS.get(origin) or f"a {origin.__name__}"
