"""The group of all commands: those of the core, and those of plugins, which it imports when run."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from gptkit.cli import process
from gptkit.errors import GptkitError, UsageError
from gptkit.memory import Need

ARGUMENTS = "gptkit.arguments"
"""Where a context has all that was typed."""
GROUP = "gptkit.commands"
"""The entry-point group of commands."""
DISTRIBUTIONS = (".dist-info", ".egg-info")
"""Endings of folders that describe an installed distribution."""
OF_PROGRAMS = {"install_completion", "show_completion"}
"""Options that typer gives to a program, and so to the app of a command."""
SHOWN = 200
"""Characters of a path in an error about it; others are too long."""
PANEL = "Commands of plugins"
COMMAND = Need("this command", "smaller numbers, or a computer with more memory")
BAD_USAGE: type[Exception] = typer.BadParameter.__bases__[0]
"""What typer raises for bad usage; it exports only this subclass."""


class Commands(TyperGroup):
    """Prints a `GptkitError` as two lines and exits with its code; a bug keeps its traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the core's commands, then those of plugins."""
        core = super().list_commands(ctx)
        return [*core, *sorted(_plugin_commands().keys() - set(core))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name; one of the core always wins."""
        found = super().get_command(ctx, cmd_name)
        if found:
            return found
        summary = _plugin_commands().get(cmd_name.rpartition(":")[2])
        return None if summary is None else PluginCommand(cmd_name, summary)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the options before the command; remember all arguments for advice."""
        ctx.meta[ARGUMENTS] = list(args)
        try:
            return super().parse_args(ctx, args)
        except BAD_USAGE as error:
            from gptkit.cli import mistakes

            raise _ended(mistakes.usage_error(error, ctx.meta[ARGUMENTS], ctx)) from error

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the arguments name.

        Raises:
            UsageError: there is none; the hint has the nearest one.
        """
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            from gptkit.cli import mistakes

            raise mistakes.unknown_command(args, ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        arguments: list[str] = ctx.meta[ARGUMENTS]
        try:
            with COMMAND.explained():
                return super().invoke(ctx)
        except BAD_USAGE as error:
            from gptkit.cli import mistakes

            raise _ended(mistakes.usage_error(error, ctx.meta[ARGUMENTS], ctx)) from error
        except UsageError as error:
            from gptkit.cli import mistakes

            mistakes.advise(error, arguments, ctx)
            raise _ended(error) from error
        except GptkitError as error:
            raise _ended(error) from error
        except OSError as error:
            found = None if hasattr(error, "__notes__") else _refused(error)  # a callback's
            if found is None:
                raise
            raise _ended(found) from error


class PluginCommand(TyperCommand):
    """A command of a plugin, which is imported when it is run.

    Args:
        name: of its entry point, or DISTRIBUTION:NAME.
        summary: of its distribution.
    """

    def __init__(self, name: str, summary: str) -> None:
        super().__init__(name, help=summary, rich_help_panel=PANEL)

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        """The context of the real command.

        Raises:
            PluginError: it cannot be imported, or several distributions have one of that name.
        """
        from gptkit.recipe import registry  # for this command only: it is slow

        found = registry.load_command(registry.find("command", str(self.name)))
        command = typer.main.get_command(found)
        command.params = [p for p in command.params if p.name not in OF_PROGRAMS]
        return command.make_context(info_name, args, parent=parent, **extra)


def _refused(error: OSError) -> GptkitError | None:
    """The error about a path that cannot even be looked at; None where `error` is of none."""
    if error.filename is not None:
        path = os.fsdecode(error.filename)
        shown = path if len(path) <= SHOWN else f"{path[:SHOWN]}..."
        hint = "check the path, and that you may read and write there"
        kind = UsageError if error.errno == errno.ENAMETOOLONG else GptkitError
        return kind(f"{shown}: {error.strerror}", hint=hint)
    try:
        os.getcwd()  # noqa: PTH109 (not worth importing pathlib)
    except OSError:
        return GptkitError("the working folder was deleted or moved", hint="cd to another one")
    return None


def _ended(error: GptkitError) -> typer.Exit:
    process.print_error(error)
    return typer.Exit(error.exit_code)


def _plugin_commands() -> dict[str, str]:
    """The commands of installed plugins with the summaries of their distributions; imports none.

    Not by importlib.metadata, whose import takes a quarter as long as all of `gptkit --help`.
    """
    found: dict[str, str] = {}
    for folder in dict.fromkeys(sys.path):
        with suppress(OSError):
            for name in os.listdir(folder or "."):  # noqa: PTH208 (Path objects take 3 ms more)
                if name.endswith(DISTRIBUTIONS):
                    found = _commands_of(f"{folder or '.'}/{name}") | found
    return found


def _commands_of(info: str) -> dict[str, str]:
    """The commands of a distribution, each with its summary."""
    try:
        with open(f"{info}/entry_points.txt", "rb") as file:  # noqa: PTH123
            contents = file.read()
    except OSError:
        return {}
    if GROUP.encode() not in contents:
        return {}
    return dict.fromkeys(_names(contents.decode("utf-8", "replace")), _summary(Path(info)))


def _names(entry_points: str) -> Iterator[str]:
    """The names in the group of commands."""
    section = ""
    for line in entry_points.splitlines():
        name, equals, _ = line.partition("=")
        if line.startswith("["):
            section = line.strip("[] \t")
        elif section == GROUP and equals and not line.startswith(("#", ";")):
            yield name.strip()


def _summary(info: Path) -> str:
    for name in ("METADATA", "PKG-INFO"):
        with suppress(OSError):
            for line in (info / name).read_text("utf-8", "replace").splitlines():
                if line.startswith("Summary:"):
                    return line.partition(":")[2].strip()
    return ""
