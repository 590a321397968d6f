"""`gptkit plugins check`: import what is installed, and find what is announced in a wrong way."""

from collections.abc import Sequence
from importlib.metadata import entry_points

from gptkit.errors import PluginError, closest
from gptkit.recipe.registry import (
    GROUPS,
    Entry,
    all_installed,
    find,
    find_any,
    load,
    load_command,
)

PREFIXES = ("gptkit.", "gptkit_", "gptkit-")
"""How the name of a group of entry points begins if gptkit is meant."""


def check_all(names: Sequence[str] = ()) -> list[tuple[Entry, PluginError | None]]:
    """Import the plugins of these names, or all of them; return each with its error, or None."""
    found = [entry for name in names for entry in find_any(name)]
    known = dict.fromkeys(found) if names else all_installed()
    return [(entry, _fault(entry)) for entry in known]


def misplaced() -> list[PluginError]:
    """Errors about entry points in groups like gptkit's that it does not have."""
    known = list(GROUPS.values())
    groups = [group for group in entry_points().groups if group.startswith(PREFIXES)]
    errors = []
    for group in sorted(set(groups) - set(known)):
        for point in entry_points(group=group):
            who = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
            near = closest(group, known)
            errors.append(
                PluginError(
                    f"{point.name} ({who}) is announced in {group}, a group that gptkit has not",
                    hint=f'did you mean "{near}"?' if near else f"groups: {', '.join(known)}",
                )
            )
    return errors


def _fault(entry: Entry) -> PluginError | None:
    try:
        (load_command if entry.kind == "command" else load)(entry)
        find(entry.kind, entry.name)  # is the name claimed twice?
    except PluginError as error:
        return error
    return None
