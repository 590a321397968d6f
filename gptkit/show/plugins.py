"""Installed plugins, their options, their faults."""

import inspect
import json
import traceback
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from gptkit.errors import PluginError
from gptkit.recipe.registry import Entry
from gptkit.show.tables import print_rows


def print_entries(found: Iterable[Entry], *, as_json: bool) -> None:
    """Print installed plugins."""
    rows = [
        {"kind": e.kind, "name": e.name, "distribution": e.distribution, "version": e.version}
        for e in found
    ]
    print_rows(rows, ("kind", "name", "distribution", "version"), as_json=as_json)


def print_plugin(entry: Entry, model: type[BaseModel]) -> None:
    """Print a plugin's description and options."""
    print(f"{entry.kind} {entry}\n\n{inspect.cleandoc(model.__doc__ or '')}\n")
    rows = [
        {
            "option": name,
            "type": _type_name(field.annotation),
            "default": "required"
            if field.is_required()
            else json.dumps(field.default, default=str),
            "meaning": field.description or "",
        }
        for name, field in model.model_fields.items()
    ]
    print_rows(rows, ("option", "type", "default", "meaning"), as_json=False)


def print_checks(results: Iterable[tuple[Entry, PluginError | None]]) -> None:
    """Print which plugins work, and the traceback of each that does not."""
    for entry, error in results:
        print(error or f"{entry.kind} {entry}: ok")
        if error and error.__cause__:
            print("".join(traceback.format_exception(error.__cause__)))


def _type_name(annotation: Any) -> str:
    return (
        annotation.__name__
        if isinstance(annotation, type)
        else str(annotation).replace("typing.", "")
    )
