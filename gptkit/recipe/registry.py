"""Entry points to plugins. Imports only the plugin that is named, and no torch."""

import json
import re
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract
from typing import Any, Literal

from pydantic import BaseModel

from gptkit.codec import CONTRACT, Codec, contract_fault, declared_contract
from gptkit.errors import DefinitionError, PluginError, closest
from gptkit.recipe.phrases import short

Kind = Literal["dataset", "callback", "codec", "format", "command"]

GROUPS: dict[Kind, str] = {
    "dataset": "gptkit.datasets",
    "callback": "gptkit.callbacks",
    "codec": "gptkit.codecs",
    "format": "gptkit.formats",
    "command": "gptkit.commands",
}
"""The entry-point group of each kind."""


@dataclass(frozen=True)
class Entry:
    """An installed plugin: its entry point and the distribution that has it."""

    kind: Kind
    name: str
    distribution: str
    version: str
    point: EntryPoint

    def __str__(self) -> str:
        return f"{self.name} ({self.origin})"

    @property
    def full_name(self) -> str:
        """The name that no other plugin of the kind has: DISTRIBUTION:NAME."""
        return f"{self.distribution}:{self.name}"

    @property
    def origin(self) -> str:
        """The distribution and its version."""
        return f"{self.distribution} {self.version}"


def installed(kind: Kind) -> list[Entry]:
    """Every installed plugin of a kind, sorted by name; imports none."""
    points = entry_points(group=GROUPS[kind])
    entries = {_entry(kind, point) for point in points}
    return sorted(entries, key=lambda entry: (entry.name, entry.distribution))


def all_installed() -> list[Entry]:
    """Every installed plugin of every kind; imports none."""
    return [entry for kind in GROUPS for entry in installed(kind)]


def find(kind: Kind, name: str) -> Entry:
    """The one installed plugin of that kind and name.

    Args:
        kind: of the plugin.
        name: NAME, or DISTRIBUTION:NAME if several distributions claim the name.

    Raises:
        PluginError: there is none, or several distributions claim the name.
    """
    matches = _named(name, installed(kind), kind)
    if len(matches) > 1:
        raise PluginError(
            f'the {kind} name "{name}" is claimed by {" and ".join(e.origin for e in matches)}',
            hint=f"choose one: {' or '.join(json.dumps(e.full_name) for e in matches)}; "
            "or pip uninstall the other",
        )
    return matches[0]


def find_any(name: str) -> list[Entry]:
    """The installed plugins of that name, of every kind: a data set and its codec, for example.

    The name may be DISTRIBUTION:NAME.

    Raises:
        PluginError: there is none.
    """
    return _named(name, all_installed(), "plugin")


def load(entry: Entry) -> type[BaseModel]:
    """Import a plugin's class; a command is no class, see `load_command`.

    Raises:
        PluginError: the import fails, or the entry point is not a plugin class of that kind, or of
            another contract.
    """
    plugin = _import(entry)
    base = _base(entry.kind)
    if not (isinstance(plugin, type) and issubclass(plugin, base)):
        raise PluginError(
            f"{entry.kind} {entry}: {entry.point.value} is not a subclass of {base.__name__}",
            hint=f"tell the authors of {entry.distribution}",
        )
    if isabstract(plugin):
        lacking = ", ".join(sorted(getattr(plugin, "__abstractmethods__", ())))
        raise PluginError(
            f"{entry.kind} {entry}: {entry.point.value} lacks {lacking}",
            hint=f"tell the authors of {entry.distribution}",
        )
    check_contract(entry, plugin)
    return plugin


def load_command(entry: Entry) -> Any:
    """Import a command's Typer app.

    Raises:
        PluginError: the import fails, or the entry point is not a Typer app.
    """
    from typer import Typer  # slow

    app = _import(entry)
    if not isinstance(app, Typer):
        raise PluginError(
            f"{entry.kind} {entry}: {entry.point.value} is not a Typer app",
            hint=f"tell the authors of {entry.distribution}",
        )
    return app


def check_contract(entry: Entry, plugin: type) -> None:
    """Refuse a plugin that is written for another contract, or does not say for which.

    Raises:
        PluginError: it says which contract the class declares, and what to do.
    """
    fault = contract_fault(plugin)
    if fault is None:
        return
    contract = declared_contract(plugin)
    newer = isinstance(contract, int) and contract > CONTRACT
    upgrade = f"pip install --upgrade {'gptkit' if newer else entry.distribution}"
    raise PluginError(
        f"{entry.kind} {entry}: {entry.point.value} {fault}",
        hint=f"write contract = {CONTRACT} in the class" if contract is None else upgrade,
    )


def _named(name: str, known: list[Entry], what: str) -> list[Entry]:
    distribution, _, own = name.rpartition(":")
    matches = [entry for entry in known if entry.name == own]
    if distribution:
        matches = [entry for entry in matches if is_from(entry, distribution)]
    if not matches:
        near = closest(name, [entry.name for entry in known])
        raise PluginError(
            f'no {what} named "{short(name)}"',
            hint=f"installed: {', '.join(map(str, known)) or 'none'}; "
            + (f'did you mean "{near}"?' if near else "pip install adds others"),
        )
    return matches


def _base(kind: Kind) -> type[BaseModel]:
    """The class that plugins of a kind extend."""
    if kind == "codec":
        return Codec
    from gptkit.plugin import Callback, Dataset, Format  # imports torch

    return {"dataset": Dataset, "callback": Callback, "format": Format}[kind]


def _import(entry: Entry) -> Any:
    try:
        with redirect_stdout(sys.stderr):  # what it prints is no result of ours
            return entry.point.load()
    except DefinitionError as error:
        raise PluginError(
            f"{entry.kind} {entry}: {error}",
            hint=f"mend the class in {entry.point.module}, or tell the authors of "
            f"{entry.distribution}",
        ) from None
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{entry.kind} {entry} cannot be imported: {type(error).__name__}: {error}",
            hint=f"gptkit plugins check {entry.name} shows where; "
            f"reinstall or remove {entry.distribution}",
        ) from error


def is_from(entry: Entry, distribution: str) -> bool:
    """Whether a distribution of that name has the plugin; as PEP 503 compares names."""
    return _normalized(entry.distribution) == _normalized(distribution)


def _normalized(distribution: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _entry(kind: Kind, point: EntryPoint) -> Entry:
    name, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "?")
    return Entry(kind, point.name, name, version, point)
