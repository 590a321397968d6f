"""The classes and functions of the plugin contract, as their docstrings tell them."""

import inspect
from collections.abc import Iterator
from typing import Annotated, Any, get_origin

from gptkit import codec, plugin, testing
from gptkit.errors import PluginError, closest
from gptkit.show.prose import print_prose
from gptkit.show.types import type_word

OPERATORS = ("__len__", "__getitem__")
"""Methods with such names are part of the contract of `Split`."""


def names() -> dict[str, Any]:
    """What plugins import from gptkit, by name."""
    modules = (plugin, codec, testing)
    return {name: getattr(module, name) for module in modules for name in module.__all__}


def with_nearest(error: PluginError, name: str) -> PluginError:
    """The error about an unknown name, with the nearest name of the contract in its hint."""
    near = closest(name, names())
    return PluginError(str(error), hint=f'did you mean "{near}"?') if near else error


def print_part(name: str) -> None:
    """Print a class with its methods, a function or a constant."""
    part = names()[name]
    if inspect.isclass(part):
        print_prose(f"class {name}\n\n{inspect.getdoc(part) or ''}")
        for title, text in _members(part):
            print_prose(f"\n{title}\n{_indented(text)}")
    elif inspect.isroutine(part):
        print_prose(f"{name}{_signature(part)}\n{_indented(inspect.getdoc(part) or '')}")
    elif get_origin(part) is Annotated:
        print_prose(f"{name}: {type_word(part)}")
    else:
        print_prose(f"{name} = {part!r}")


def _members(kind: type) -> Iterator[tuple[str, str]]:
    """The public methods and properties of a class and of its bases in gptkit, with their texts."""
    own = [base for base in reversed(kind.__mro__) if base.__module__.startswith("gptkit")]
    members = {name: value for base in own for name, value in vars(base).items()}
    for name, value in members.items():
        value = getattr(value, "__func__", value)
        if (name.startswith("_") and name not in OPERATORS) or not (text := _doc(kind, name)):
            continue
        if isinstance(value, property):
            yield name, text
        elif inspect.isroutine(value):
            yield f"{name}{_signature(value)}", text


def _doc(kind: type, name: str) -> str:
    """The docstring of a member; an override without one has that of its base."""
    return inspect.getdoc(getattr(kind, name, None)) or ""


def _signature(routine: Any) -> str:
    """The parameters as a caller sees them, without types."""
    parameters = [
        p.replace(annotation=inspect.Parameter.empty)
        for p in inspect.signature(routine).parameters.values()
        if p.name not in ("self", "cls")
    ]
    return str(inspect.Signature(parameters))


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())
