"""The types of options in plain words: int, text, number, list of texts."""

import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "int",
    float: "number",
    str: "text",
    Path: "path",
    dict: "table",
    list: "list",
    tuple: "list",
    Any: "anything",
}
LIMITS = ((Gt, "gt", "above"), (Ge, "ge", "at least"), (Lt, "lt", "below"), (Le, "le", "at most"))


def type_word(annotation: Any) -> str:
    """A type in plain words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return ", ".join([type_word(arguments[0]), *_limits(arguments[1:])])
    if origin is Literal:
        return " or ".join(map(_literal, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(type_word(each) for each in arguments if each is not type(None))
    if origin is tuple and arguments[-1] is not ...:
        return f"list of {len(arguments)}: {', '.join(map(type_word, arguments))}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"list of {type_word(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"table of {type_word(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return str(WORDS.get(annotation) or getattr(annotation, "__name__", annotation))


def field_type(field: FieldInfo) -> str:
    """The type of an option with its limits, e.g. "int, at least 1"."""
    return ", ".join([type_word(field.annotation), *_limits(field.metadata)])


def field_default(field: FieldInfo) -> str:
    """The default of an option as it stands in a recipe."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "unset" if value is None else _literal(value)


def _limits(metadata: Sequence[Any]) -> list[str]:
    """The limits among the annotations of a type."""
    found = []
    for each in metadata:
        parts = list(each) if isinstance(each, Interval | Len) else [each]
        for part in parts:
            known = [(w, getattr(part, a)) for c, a, w in LIMITS if isinstance(part, c)]
            found += [f"{word} {_limit(value)}" for word, value in known]
            if isinstance(part, MinLen) and part.min_length:
                found.append("not empty" if part.min_length == 1 else f"{part.min_length} or more")
    return found


def _limit(value: Any) -> str:
    """A limit; those of a computer's numbers as powers of 2, such as "2**63 - 1"."""
    for number, more in ((value, ""), (value + 1, " - 1")) if isinstance(value, int) else ():
        if number >= 2**31 and number & (number - 1) == 0:
            return f"2**{number.bit_length() - 1}{more}"
    return str(value)


def _literal(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, Mapping) and value:
        return f"{{ {', '.join(f'{key} = {_literal(item)}' for key, item in value.items())} }}"
    return str(value)
