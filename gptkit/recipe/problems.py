"""Pydantic's errors as problems: the place in the recipe, and the fault in plain words."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gptkit.errors import Key, Problem, closest
from gptkit.recipe import phrases
from gptkit.recipe.older import MOVED
from gptkit.recipe.options import OPTIMIZERS, MuonOptions

OPTIMIZER = ("train", "optimizer")
"""Where a recipe has the table of the optimizer; pydantic adds the optimizer's name after it."""
MOST = 200
"""How many of pydantic's errors are looked at; a broken file can have a million."""
BARE = re.compile(r"[\w-]+")
"""A part of a key that needs no quotes."""
BRACKETS = "write [[callbacks]], with two brackets, and use = NAME below"


def problems_of(
    error: ValidationError, model: type[BaseModel], value: Any, place: str = ""
) -> list[Problem]:
    """Pydantic's errors about `value`, which is no `model`, as problems of a recipe below `place`.

    A value that fits none of several types has one problem, with a fault for each type.
    """
    faults: dict[Key, list[str]] = {}
    for details in error.errors(include_url=False)[:MOST]:
        key, fault = _problem(details, model, value)
        faults.setdefault(key, []).append(fault)
    return [Problem(written(key, place), _joined(texts), key=key) for key, texts in faults.items()]


def first_fault(error: ValidationError) -> str:
    """The first of pydantic's errors about a value of our own, such as a line of JSON."""
    details = error.errors(include_url=False)[0]
    place = phrases.short(".".join(map(str, details["loc"])))
    return f"{place}: {phrases.fault(details)}" if place else phrases.fault(details)


def written(key: Key, place: str = "") -> str:
    """A key as a recipe's readers write it, e.g. `callbacks[1].every`, below `place`."""
    for part in key:
        if isinstance(part, int):
            place += f"[{part}]"
            continue
        name = phrases.short(part if BARE.fullmatch(part) else json.dumps(part, ensure_ascii=False))
        place += f".{name}" if place else name
    return place


def _joined(faults: Sequence[str]) -> str:
    """The faults that a value has for each of several types, with what was got once, at the end."""
    parts = [fault.rpartition(", got ") for fault in dict.fromkeys(faults)]
    if len(parts) == 1 or any(got != parts[0][2] for _, _, got in parts):
        return "; or ".join(dict.fromkeys(faults))
    return f"{'; or '.join(words for words, _, _ in parts)}, got {parts[0][2]}"


def _problem(details: ErrorDetails, model: type[BaseModel], value: Any) -> tuple[Key, str]:
    kind, key = details["type"], _key(details, value)
    if kind == "extra_forbidden":
        return key, _unknown_key(key, details["loc"], model)
    if kind == "union_tag_invalid":
        name = details["ctx"]["discriminator"].strip("'")
        known = details["ctx"]["expected_tags"].replace(", ", " or ")
        return (*key, name), f"should be {known}, got {phrases.shown(details['input'][name])}"
    fault = phrases.fault(details)
    if kind in ("model_type", "tuple_type") and key[:1] == ("callbacks",):
        fault = f"should be a table, got {phrases.shown(details['input'])}; {BRACKETS}"
    elif kind == "model_type" and len(key) == 1:
        fault += f"; write [{key[0]}], with its options below"
    return key, fault


def _key(details: ErrorDetails, value: Any) -> Key:
    """Where an error is in `value`: pydantic's location without the names of types in a union."""
    loc = details["loc"]
    last = len(loc) - 1
    key: list[int | str] = []
    for i, part in enumerate(loc):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list | tuple) and isinstance(part, int):
            value = value[part] if part < len(value) else None
        elif i != 0 and not (i == last and details["type"] == "missing"):
            continue  # a type of a union, or "[key]"
        else:
            value = None  # a field that is not given
        key.append(part)
    return tuple(key)


def _unknown_key(key: Key, loc: Key, model: type[BaseModel]) -> str:
    name = str(key[-1])
    if key[:-1] == ("train",) and name in MOVED:
        return "is an option of [train.optimizer], which has it, too; remove it here"
    if loc[:-1] == (*OPTIMIZER, "adamw") and name in MuonOptions.model_fields:
        return 'is an option of "muon"; remove it, or set use = "muon"'
    known = sorted(_fields(loc[:-1], model))
    near = closest(name, known)
    if near:
        return f'unknown key; did you mean "{near}"?'
    return f"unknown key; known: {', '.join(known) or 'none'}"


def _fields(loc: Key, model: type[BaseModel]) -> Mapping[str, Any]:
    """The fields of the class that a location leads to, from `model`; none if it is not one."""
    classes = [model]
    for part in loc:
        annotations = [c.model_fields[str(part)].annotation for c in classes
                       if part in c.model_fields]  # fmt: skip
        inner = [found for each in annotations for found in _classes(each)]
        tagged = [c for c in classes if part in (c.__name__, _tag(c))]
        classes = inner or tagged or (classes if isinstance(part, int) else [])
    return classes[0].model_fields if len(classes) == 1 else {}


def _tag(kind: type[BaseModel]) -> str | None:
    return next((name for name, options in OPTIMIZERS.items() if options is kind), None)


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in a type, such as those of a list or a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _classes(inner)
