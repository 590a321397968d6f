"""Advice for mistyped commands: the line to paste, for the habits of other tools, too."""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from gptkit.cli.habits import COMMANDS, FIELDS, OPTIONS
from gptkit.errors import closest

RECIPE_COMMANDS = {("train",), ("resume",), ("check",), ("plan",)}
_KEY = r"[A-Za-z_][\w-]*(\.[\w:-]+|\[\d+\])+"
_ASSIGNMENT = re.compile(rf"(seed|{_KEY})=.*", re.DOTALL)
_DOTTED = re.compile(rf"--{_KEY}")
_SWITCHED = {"true", "false", "auto"}
_CHECKPOINT = re.compile(r"(last|best)|step-0*(\d+)")
_STDIN = "-\0<"
"""An option whose value is the file for standard input; nobody can type it."""


class _NotUnderstoodError(Exception):
    """Something typed has no counterpart, so that no line can be offered."""


@dataclass(frozen=True)
class Command:
    """What a command takes.

    Args:
        path: its names, such as ("plugins", "show").
        options: every option's spelling, and whether a value follows it.
        arguments: how its help names the arguments; optional ones are in brackets, and of the last
            there may be several if it ends with dots.
    """

    path: tuple[str, ...]
    options: Mapping[str, bool]
    arguments: tuple[str, ...] = ()

    @property
    def reads_recipe(self) -> bool:
        """Whether it reads a recipe, whose fields `--set` changes."""
        return self.path in RECIPE_COMMANDS

    @property
    def help(self) -> str:
        """The line that shows its help."""
        return line(*self.path, "--help")


def line(*words: str) -> str:
    """A line to paste into a shell."""
    return shlex.join(("gptkit", *words)).replace(shlex.quote(_STDIN), "<")


def for_command(
    words: Sequence[str],
    known: Sequence[str],
    describe: Callable[[tuple[str, ...]], Command | None],
    path: tuple[str, ...] = (),
) -> str:
    """The line that was probably meant when `words` begin with no known command.

    Args:
        words: what was typed behind `path`.
        known: the commands that there are.
        describe: what a command takes; None if that is not known.
        path: the group of commands, such as ("plugins",).
    """
    first, rest = words[0], words[1:]
    if first == "help":
        return line(*path, *rest[:1], "--help") if {*rest[:1]} <= {*known} else line("--help")
    theirs = None if path else COMMANDS.get(first)
    with_recipe = any(word.endswith(".toml") for word in rest)  # run r.toml: not runs
    name = (with_recipe and theirs) or closest(first, known) or theirs
    if not path and first.endswith(".toml"):
        name, rest = "train", words
    if not path and (first.lower().endswith(".onnx") or Path(first, "recipe.toml").is_file()):
        name, rest = "sample", words
    if name is None:
        return line(*path, "--help")
    meant = (*path, *name.split())
    command = describe(meant)
    return _answer(rest, command) if command else line(*meant, *rest)


def for_arguments(words: Sequence[str], command: Command) -> str:
    """The line that was probably meant by `words`, typed behind the command's name.

    What is not understood in them is in no line: then it is that of the help.
    """
    return command.help if corrected(words, command) == list(words) else _answer(words, command)


def corrected(words: Sequence[str], command: Command) -> list[str] | None:
    """`words` in the spelling of this command; None if they are not understood."""
    try:
        found = [word for part in _parts(list(words)) for word in _correct(*part, command)]
    except _NotUnderstoodError:
        return None
    several = any(name.endswith("...") for name in command.arguments)
    return found if several or _count(found, command) <= len(command.arguments) else None


def _answer(words: Sequence[str], command: Command) -> str:
    parts = list(_parts(list(words)))
    others = [p for p in parts if (_plain(p[0]), p[2]) != ("init-from", ["resume"])]
    if command.path == ("train",) and len(others) < len(parts):
        sets = corrected([word for part in others if part[0] for word in _spelled(*part)], command)
        if sets is not None and {*sets[::2]} <= {"--set"}:
            return line("resume", "RUN", *sets)
        return line("resume", "--help")
    found = corrected(words, command)
    if found is None:
        return command.help
    required = [name for name in command.arguments if not name.startswith("[")]
    return line(*command.path, *required[_count(found, command) :], *found)


def _count(words: list[str], command: Command) -> int:
    """How many of the words are arguments, not options or their values."""
    return sum(
        len(values)
        for option, between, values in _parts(list(words))
        if not option or (between == " " and command.options.get(option) is False)
    )


def _parts(words: list[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Options and arguments one by one: the option, "=" or " " and the words that follow it."""
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-") or word == "-":
            yield "", " ", [word]
        elif equals:
            yield name, "=", [value]
        else:
            follows = bool(words) and (not words[0].startswith("-") or words[0] == "-")
            values = [words.pop(0)] if follows else []
            key = name == "--set" and values and "=" not in values[0]
            if key and words and _is_value(words[0]):
                values = [f"{values[0]}={words.pop(0)}"]
            yield name, " ", values


def _is_value(word: str) -> bool:
    return not word.startswith("-") and not word.endswith(".toml") and "=" not in word


def _correct(option: str, between: str, values: list[str], command: Command) -> list[str]:
    if not option:
        return _argument(values[0], command)
    takes_value = command.options.get(option)
    if takes_value is None and not option.startswith("--") and command.options.get(option[:2]):
        return [option, *_arguments(values, command)]  # -n3 has its value already
    if takes_value:
        return _with_value(option, between, values, command)
    if takes_value is None:
        return _theirs(option, between, values, command)
    if between == "=":
        if values[0].lower() not in ("true", "false"):
            raise _NotUnderstoodError
        return [option] if values[0].lower() == "true" else []
    return [option, *_arguments(values, command)]


def _argument(word: str, command: Command) -> list[str]:
    if command.reads_recipe and _ASSIGNMENT.fullmatch(word):
        return ["--set", _assigned(word)]
    return [word] if "RECIPE" in command.arguments else _run(word, command)


def _arguments(values: list[str], command: Command) -> list[str]:
    return [word for value in values for word in _argument(value, command)]


def _run(word: str, command: Command) -> list[str]:
    """A run folder; if it is a checkpoint in one, with the option that chooses it."""
    path = Path(word)
    found = _CHECKPOINT.fullmatch(path.name)
    run = path.parent.parent
    if not found or not (run / "recipe.toml").is_file() or path.parent.name != "checkpoints":
        return [word]
    if "--checkpoint" not in command.options:
        raise _NotUnderstoodError
    return [str(run), "--checkpoint", found[1] or found[2]]


def _with_value(option: str, between: str, values: list[str], command: Command) -> list[str]:
    if not values:
        raise _NotUnderstoodError
    if option == "--set" and command.reads_recipe:
        values = [_assigned(values[0])]
    if option == "--from" and len(run := _run(values[0], command)) > 1:
        return [option, *run]
    return _spelled(option, between, values)


def _assigned(text: str) -> str:
    """`key=value`, the key with its table and the value as TOML has it."""
    key, equals, value = text.partition("=")
    if not equals:
        raise _NotUnderstoodError
    if not re.fullmatch(rf"seed|{_KEY}", key):
        key = _key(key) or ""
    table, _, name = key.partition(".")
    fields = _core_fields().get(table)
    if not key or (fields and re.split(r"[.[]", name)[0] not in {*fields, *_moved()}):
        raise _NotUnderstoodError
    return f"{key}={value.lower() if value in ('True', 'False') else value}"


def _theirs(option: str, between: str, values: list[str], command: Command) -> list[str]:
    """An option that this command has not, by the habits of other tools."""
    name, value = _plain(option), values[0] if values else ""
    ours = OPTIONS.get(name)
    if ours in command.arguments and values:
        return _run(value, command) if ours == "[RUN]" else values
    if key := command.reads_recipe and _field(option):
        if _is_switch(key) and value.lower() not in _SWITCHED:
            return ["--set", f"{key}=true", *_arguments(values, command)]
        return _with_value("--set", " ", [f"{key}={value}"] if values else [], command)
    found = None
    if name == "ckpt" and re.fullmatch(r"last|best|\d+", value):
        found = ["--checkpoint", value]
    elif name == "do-sample" and value in ("False", "false"):
        found = ["--temperature", "0"]
    elif name == "start" and value.startswith("FILE:"):
        found = ["--prompt", "-", _STDIN, value.removeprefix("FILE:")]
    if found and found[0] in command.options:
        return found
    known = {_plain(spelling): spelling for spelling in command.options}
    wanted = _plain(ours or name)
    near = closest(wanted, known)
    if near is None or abs(len(near) - len(wanted)) > 1:  # a name of its own, no slip of the hand
        raise _NotUnderstoodError
    return _correct(known[near], between, values, command)


def _is_switch(key: str) -> bool:
    """Whether a field of the recipe is true or false, and may be named without a value."""
    table, _, name = key.partition(".")
    kind = _core_fields().get(table, {}).get(name)
    return bool in (kind, *get_args(kind))


def _field(option: str) -> str | None:
    """The recipe's field that other tools set by this option."""
    return option[2:] if _DOTTED.fullmatch(option) else _key(option)


def _key(name: str) -> str | None:
    """The key of a recipe's field that is called so, here or in other tools."""
    name = _plain(name).replace("-", "_")
    for table, fields in _core_fields().items():
        if name in fields and name not in FIELDS:
            return f"{table}.{name}"
    return FIELDS.get(name)


def _moved() -> tuple[str, ...]:
    from gptkit.recipe.older import MOVED

    return MOVED


def _core_fields() -> dict[str, dict[str, Any]]:
    """The types of the core's fields by table and name."""
    from gptkit.recipe.options import (  # for mistakes only: it is slow
        LoraOptions,
        ModelTable,
        TrainOptions,
    )

    tables = {
        "model": ModelTable.model_fields,
        "train": TrainOptions.model_fields,
        "lora": LoraOptions.model_fields,
    }
    return {
        table: {name: field.annotation for name, field in fields.items()}
        for table, fields in tables.items()
    }


def _plain(option: str) -> str:
    """An option without its dashes, which all options share."""
    return option.lstrip("-").replace("_", "-").lower()


def _spelled(option: str, between: str, values: list[str]) -> list[str]:
    if between == "=" and option.startswith("--"):
        return [f"{option}={values[0]}"]
    return [option, *values] if option else values
