"""The group of all commands: those of the core, and those of plugins, which it imports when run."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from gptkit.errors import GptkitError, UsageError

ARGUMENTS = "gptkit.arguments"
"""Where a context has all that was typed."""
GROUP = "gptkit.commands"
"""The entry-point group of commands."""
DISTRIBUTIONS = {".dist-info", ".egg-info"}
"""Suffixes of folders that describe an installed distribution."""
OF_PROGRAMS = {"install_completion", "show_completion"}
"""Options that typer gives to a program, and so to the app of a command."""
PANEL = "Commands of plugins"
BAD_USAGE: type[Exception] = typer.BadParameter.__bases__[0]
"""What typer raises for bad usage; it exports only this subclass."""


class Commands(TyperGroup):
    """Prints a `GptkitError` as two lines and exits with its code; a bug keeps its traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the core's commands, then those of plugins."""
        core = super().list_commands(ctx)
        return [*core, *sorted(set(_plugin_names()) - set(core))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name; one of the core always wins."""
        found = super().get_command(ctx, cmd_name)
        if found or cmd_name.rpartition(":")[2] not in _plugin_names():
            return found
        return PluginCommand(cmd_name)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the options before the command; remember all arguments for advice."""
        ctx.meta[ARGUMENTS] = list(args)
        try:
            return super().parse_args(ctx, args)
        except BAD_USAGE as error:
            from gptkit.cli import mistakes

            raise _ended(mistakes.usage_error(error, ctx.meta[ARGUMENTS])) from error

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the arguments name.

        Raises:
            UsageError: there is none; the hint has the nearest one.
        """
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            from gptkit.cli import mistakes

            raise mistakes.unknown_command(args, self.list_commands(ctx))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        arguments: list[str] = ctx.meta[ARGUMENTS]
        try:
            return super().invoke(ctx)
        except BAD_USAGE as error:
            from gptkit.cli import mistakes

            raise _ended(mistakes.usage_error(error, ctx.meta[ARGUMENTS])) from error
        except UsageError as error:
            from gptkit.cli import mistakes

            mistakes.advise(error, arguments, self.get_command(ctx, arguments[0]))
            raise _ended(error) from error
        except GptkitError as error:
            raise _ended(error) from error
        except KeyboardInterrupt:
            typer.echo("\nstopped", err=True)
            raise typer.Exit(130) from None


class PluginCommand(TyperCommand):
    """A command of a plugin, which is imported when it is run.

    Args:
        name: of its entry point, or DISTRIBUTION:NAME.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, help=_summary(name), rich_help_panel=PANEL)

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


def print_error(error: GptkitError) -> None:
    """Print an error, who raised it and its hint to stderr."""
    for text in str(error).splitlines():
        typer.echo(f"error: {text}", err=True)
    for text in getattr(error, "__notes__", ()):  # the plugin, the event and the step
        typer.echo(f"note:  {text}", err=True)
    for text in (error.hint or "").splitlines():
        typer.echo(f"hint:  {text}", err=True)


def _ended(error: GptkitError) -> typer.Exit:
    print_error(error)
    return typer.Exit(error.exit_code)


def _plugin_names() -> list[str]:
    """The commands of all installed plugins; imports none."""
    return [point.name for point in _entry_points()]


def _summary(name: str) -> str:
    """The summary of the distribution that has a command."""
    own = name.rpartition(":")[2]
    found = [p.dist for p in _entry_points() if p.name == own and p.dist]
    return "; ".join(str(dist.metadata["Summary"] or dist.name) for dist in found)


def _entry_points() -> list[Any]:
    if not any(GROUP.encode() in contents for contents in _entry_point_files()):
        return []
    from importlib.metadata import entry_points  # takes a quarter as long as all of `--help`

    return list(entry_points(group=GROUP))


def _entry_point_files() -> Iterator[bytes]:
    """The contents of every installed distribution's entry_points.txt."""
    for folder in map(Path, dict.fromkeys(sys.path)):
        with suppress(OSError):
            for info in folder.iterdir():
                if info.suffix in DISTRIBUTIONS:
                    with suppress(OSError):
                        yield (info / "entry_points.txt").read_bytes()
