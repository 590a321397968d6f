"""Mistakes in what is typed, in gptkit's words. Imported only after one, since it takes a while."""

import re
from collections.abc import Sequence
from typing import Any

from gptkit.cli import advice
from gptkit.errors import UsageError

SUGGESTIONS = re.compile(r" \(Possible options: .*\)|\. Did you mean .*\?")
"""What typer adds to its messages, and gptkit's hints say in full."""


def unknown_command(words: Sequence[str], known: Sequence[str]) -> UsageError:
    """The error for a command that there is not, with the nearest one."""
    return UsageError(f"no command named {words[0]}", hint=advice.for_command(words, known))


def advise(error: UsageError, arguments: Sequence[str], command: Any) -> None:
    """Replace an error's hint if a field was set without `--set`, which is then the mistake.

    Args:
        error: of the command.
        arguments: all that was typed.
        command: that it names; None if there is none.
    """
    words = arguments[1:]
    if command and advice.assignments(words):
        described = _describe((arguments[0],), command)
        if described.reads_recipe:
            error.hint = advice.for_arguments(words, described)


def usage_error(error: Any, ctx: Any, arguments: Sequence[str]) -> UsageError:
    """What typer says about bad usage, in gptkit's words and with the line that was meant.

    Args:
        error: of typer.
        ctx: of `gptkit` itself.
        arguments: all that was typed.
    """
    if type(error).__name__ == "NoArgsIsHelpError":
        raise error
    message = SUGGESTIONS.sub("", error.format_message()).rstrip(".")
    if error.ctx:
        path, command = _path(error.ctx), error.ctx.command
    else:  # about an option's value, if there is none or too many
        path, command = _named(ctx, arguments)
    words = list(arguments[len(path) :]) if tuple(arguments[: len(path)]) == path else []
    if words and "No such command" in message:
        hint = advice.for_command(words, command.list_commands(error.ctx), path)
    else:
        hint = advice.for_arguments(words, _describe(path, command))
    place = " ".join(("gptkit", *path))
    return UsageError(f"{place}: {message[0].lower()}{message[1:]}", hint=hint)


def _path(ctx: Any) -> tuple[str, ...]:
    """The names of the command that a context belongs to, without `gptkit` itself."""
    return (*_path(ctx.parent), ctx.info_name) if ctx.parent else ()


def _named(ctx: Any, arguments: Sequence[str]) -> tuple[tuple[str, ...], Any]:
    """The command that the arguments begin with: its names, and itself."""
    path: tuple[str, ...] = ()
    command = ctx.command
    for word in arguments:
        found = command.get_command(ctx, word) if hasattr(command, "get_command") else None
        if found is None:
            break
        path, command = (*path, word), found
    return path, command


def _describe(path: tuple[str, ...], command: Any) -> advice.Command:
    options = {"--help": False, "-h": False}
    arguments = []
    for param in command.params:
        if param.param_type_name == "argument":
            arguments.append(str(param.metavar))
        else:
            spellings = (*param.opts, *param.secondary_opts)
            options |= dict.fromkeys(spellings, not param.is_flag)
    return advice.Command(path, options, tuple(arguments))
