"""Installed plugins, their options, their faults."""

import inspect
import traceback
from collections.abc import Iterable

from pydantic import BaseModel

from gptkit.errors import PluginError
from gptkit.recipe.registry import Entry
from gptkit.show.prose import print_prose
from gptkit.show.tables import print_rows
from gptkit.show.types import field_default, field_type
from gptkit.terminal import print_result


def print_entries(found: Iterable[Entry], *, as_json: bool) -> None:
    """Print installed plugins."""
    rows = [
        {"kind": e.kind, "name": e.name, "distribution": e.distribution, "version": e.version}
        for e in found
    ]
    print_rows(rows, ("kind", "name", "distribution", "version"), as_json=as_json)


def print_plugin(entry: Entry, model: type[BaseModel]) -> None:
    """Print a plugin's description and options."""
    print_prose(f"{entry.kind} {entry}\n\n{inspect.cleandoc(model.__doc__ or '')}\n")
    if not model.model_fields:
        print_result("no options")
        return
    rows = [
        {
            "option": name,
            "type": field_type(field),
            "default": field_default(field),
            "meaning": " ".join((field.description or "").split()),
        }
        for name, field in model.model_fields.items()
    ]
    print_rows(rows, ("option", "type", "default", "meaning"), as_json=False)


def print_command(entry: Entry) -> None:
    """Print what a command's distribution says about itself."""
    summary = entry.point.dist.metadata["Summary"] if entry.point.dist else None
    print_result(f"command {entry}\n\n{summary or 'no summary'}\n\ngptkit {entry.name} --help")


def print_checks(
    results: Iterable[tuple[Entry, PluginError | None]], misplaced: Iterable[PluginError]
) -> None:
    """Print which plugins work, what is wrong with the others, and what is misplaced.

    A plugin that cannot be imported is shown with the traceback.
    """
    for entry, error in results:
        if error is None:
            print_result(f"{entry.kind} {entry}: ok")
        elif error.__cause__:
            print_result(error)
            print_result("".join(traceback.format_exception(error.__cause__)))
        else:
            print_result(f"{error}; {error.hint}")
    for error in misplaced:
        print_result(f"{error}; {error.hint}")
