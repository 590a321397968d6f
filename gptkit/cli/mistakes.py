"""Mistakes in what is typed, in gptkit's words. Imported only after one, since it takes a while."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from gptkit.cli import advice
from gptkit.errors import UsageError
from gptkit.recipe import phrases

SUGGESTIONS = re.compile(r" \(Possible options: .*\)|\. Did you mean .*\?")
"""What typer adds to its messages, and gptkit's hints say in full."""

LONGEST = 1000
"""Characters of the longest command that a hint repeats."""


def unknown_command(words: Sequence[str], ctx: Any) -> UsageError:
    """The error for a command that there is not, with the nearest one.

    Args:
        words: all that was typed.
        ctx: of the group of all commands.
    """
    hint = advice.for_command(words, ctx.command.list_commands(ctx), _describer(ctx))
    return UsageError(f"no command named {words[0]}", hint=hint)


def advise(error: UsageError, arguments: Sequence[str], ctx: Any) -> None:
    """Replace an error's hint if what was typed can be corrected, which is then the mistake.

    Args:
        error: of the command.
        arguments: all that was typed.
        ctx: of the group of all commands.
    """
    path, command = _named(arguments, ctx)
    words, described = list(arguments[len(path) :]), _describe(path, command)
    short = sum(map(len, words)) < LONGEST
    if short and advice.corrected(words, described) not in (None, words):
        error.hint = advice.for_arguments(words, described)


def usage_error(error: Any, arguments: Sequence[str], root: Any) -> UsageError:
    """What typer says about bad usage, in gptkit's words and with the line that was meant.

    Args:
        error: not every one knows the context that it belongs to.
        arguments: all that was typed.
        root: the context of the group of all commands.
    """
    if type(error).__name__ == "NoArgsIsHelpError":
        raise error
    if isinstance(error.__cause__, ValidationError):
        error.message = phrases.fault(error.__cause__.errors(include_url=False)[0])
    message, ctx = SUGGESTIONS.sub("", error.format_message()).rstrip("."), error.ctx
    path, command = (_path(ctx), ctx.command) if ctx else _named(arguments, root)
    words = list(arguments[len(path) :]) if tuple(arguments[: len(path)]) == path else []
    if words and ctx and "No such command" in message:
        hint = advice.for_command(words, command.list_commands(ctx), _describer(root), path)
    else:
        hint = advice.for_arguments(words, _describe(path, command))
    place = " ".join(("gptkit", *path))
    return UsageError(f"{place}: {message[:1].lower()}{message[1:]}", hint=hint)


def _named(words: Sequence[str], root: Any) -> tuple[tuple[str, ...], Any]:
    """The command that the first words name, and these words."""
    path: tuple[str, ...] = ()
    command = root.command
    for word in words:
        found = command.get_command(root, word) if hasattr(command, "get_command") else None
        if found is None:
            break
        path, command = (*path, word), found
    return path, command


def _describer(root: Any) -> Callable[[tuple[str, ...]], advice.Command | None]:
    """A function that describes a command; one of a plugin only its import could describe."""

    def describe(path: tuple[str, ...]) -> advice.Command | None:
        found, command = _named(path, root)
        return _describe(path, command) if found == path and command.params else None

    return describe


def _path(ctx: Any) -> tuple[str, ...]:
    """The names of the command that a context belongs to, without `gptkit` itself."""
    return (*_path(ctx.parent), ctx.info_name) if ctx.parent else ()


def _describe(path: tuple[str, ...], command: Any) -> advice.Command:
    options = {"--help": False, "-h": False}
    arguments = []
    for param in command.params:
        if param.param_type_name == "argument":
            name = str(param.metavar or param.name.upper())
            name = f"{name}..." if param.nargs < 0 else name
            arguments.append(name if param.required else f"[{name}]")
        else:
            spellings = (*param.opts, *param.secondary_opts)
            options |= dict.fromkeys(spellings, not param.is_flag)
    return advice.Command(path, options, tuple(arguments))
