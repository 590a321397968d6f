"""The formats of models: an installed plugin and options become a Format."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gptkit.errors import Problem, UsageError
from gptkit.plugin import Format
from gptkit.recipe import overriding, registry
from gptkit.recipe.problems import problems_of

FORM = "option=value"
SET_HINT = "for example --set dtype=float16"


def make(name: str, options: Mapping[str, Any], overrides: Iterable[str] = ()) -> Format:
    """A format with its options.

    Args:
        name: of its entry point, or DISTRIBUTION:NAME.
        options: by name.
        overrides: further options, as `OPTION=VALUE` texts; later ones win.

    Raises:
        PluginError: there is no such format, or it cannot be imported.
        UsageError: an option is unknown, has a wrong value or is given in both ways; says all that
            is wrong.
    """
    kind = registry.load(registry.find("format", name))

    def problems(table: Mapping[str, Any]) -> list[Problem]:
        try:
            kind.model_validate(table)
        except ValidationError as error:
            return problems_of(error, kind, table, name)
        return []

    table, sets = dict(options), []
    for text in overrides:
        override = overriding.parse(text, form=FORM, hint=SET_HINT)
        if not override.key.isidentifier():
            raise UsageError(f"{override}: not of the form {FORM}", hint=SET_HINT)
        if override.key in options:
            shorthand = f"--{override.key} {options[override.key]}"
            raise UsageError(f"{override}: {shorthand} is given, too", hint="give one of them")
        sets.append(replace(override, where=(override.key,)))
        table[override.key] = override.value
    found = overriding.settle(table, sets, problems)
    if found:
        lines = map(str, overriding.blame(found, sets, problems(options)))
        raise UsageError("\n".join(lines), hint=f"gptkit plugins show {name} lists its options")
    made = kind.model_validate(table)
    assert isinstance(made, Format)
    return made


def find_reader(source: str) -> str:
    """The full name of the installed format that reads a source.

    Args:
        source: the path of a model of another program, or a name that a format knows.

    Raises:
        UsageError: none reads it, or several do.
    """
    found, read, broken = [], [], []
    for entry in registry.installed("format"):
        try:
            kind = registry.load(entry)
            assert issubclass(kind, Format)
            if kind.read is not Format.read:
                read.append(entry.name)
                if kind.model_validate({}).reads(source):
                    found.append(entry.full_name)
        except Exception:  # of a plugin; whoever names it hears of it
            broken.append(entry.name)
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{source}: {' and '.join(found)} read it", hint=f"choose one: --format {found[0]}"
        )
    known = (
        f"formats that are read: {', '.join(read)}" if read else "install a plugin that reads it"
    )
    unusable = f"; {', '.join(broken)} cannot be used: gptkit plugins check" if broken else ""
    fault = "no installed format reads this"
    if not Path(source).exists():
        fault = f"no such file or folder, and {fault}"
    elif (Path(source) / "recipe.toml").is_file():
        fault, known = "is a run of gptkit, not a model of another program", "it needs no import"
    raise UsageError(f"{source}: {fault}", hint=known + unusable)


def where_it_opens(config: Mapping[str, Any]) -> list[str]:
    """What the installed formats say of a model's config, a line for each that has an opinion."""
    lines = []
    for entry in registry.installed("format"):
        try:
            kind = registry.load(entry)
            assert issubclass(kind, Format)
            if opened := kind.model_validate({}).opens_as(config):
                lines.append(f"opens in {entry.name} as {opened}")
        except UsageError as error:
            lines.append(f"does not open in {entry.name}: {error}")
        except Exception:  # of a plugin; whoever names it hears of it
            continue
    return lines
