"""Advice for mistyped commands: the line to paste, for the habits of other tools, too."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from gptkit.errors import closest

COMMANDS = {
    "evaluate": "eval",
    "finetune": "train",
    "fit": "train",
    "generate": "sample",
    "init": "plugins new",
    "ls": "runs list",
    "pretrain": "train",
    "run": "train",
    "test": "eval",
    "validate": "check",
}
"""Other tools' names of commands."""

FIELDS = {
    "attn_pdrop": "model.dropout",
    "batch_size": "train.batch_size",
    "block_size": "dataset.block_size",
    "context_length": "dataset.block_size",
    "d_model": "model.n_embd",
    "epochs": "train.epochs",
    "eval_interval": "train.eval_every",
    "eval_iters": "train.eval_batches",
    "eval_steps": "train.eval_every",
    "grad_clip": "callbacks.grad-clip.max_norm",
    "hidden_size": "model.n_embd",
    "learning_rate": "train.optimizer.learning_rate",
    "log_interval": "callbacks.log.every",
    "logging_steps": "callbacks.log.every",
    "lr": "train.optimizer.learning_rate",
    "max_grad_norm": "callbacks.grad-clip.max_norm",
    "max_iters": "train.steps",
    "max_steps": "train.steps",
    "model_type": "model.preset",
    "num_attention_heads": "model.n_head",
    "num_hidden_layers": "model.n_layer",
    "num_train_epochs": "train.epochs",
    "optimizer": "train.optimizer.use",
    "per_device_train_batch_size": "train.batch_size",
    "save_steps": "train.save_every",
    "seed": "seed",
    "save_total_limit": "train.keep",
    "warmup_iters": "callbacks.lr-decay.warmup_steps",
    "warmup_steps": "callbacks.lr-decay.warmup_steps",
    "weight_decay": "train.optimizer.weight_decay",
}
"""Where a recipe has what other tools set by an option of their own."""

OPTIONS = {
    "--config": "RECIPE",
    "--recipe": "RECIPE",
    "--model": "[RUN]",
    "--ckpt": "[RUN]",
    "--out_dir": "--out",
    "--output_dir": "--out",
    "--max_new_tokens": "--tokens",
    "--max_length": "--tokens",
    "--num_samples": "--samples",
    "--num_return_sequences": "--samples",
    "--start": "--prompt",
    "--init_from": "--from",
}
"""Other tools' options: ours, or the argument that takes their value."""

RECIPE_COMMANDS = {("train",), ("resume",), ("check",)}
_KEY = r"[A-Za-z_][\w-]*(\.[\w:-]+|\[\d+\])+"
_ASSIGNMENT = re.compile(rf"(seed|{_KEY})=.*", re.DOTALL)
_DOTTED = re.compile(rf"--{_KEY}")
_SWITCHED = {"true", "false", "auto"}


@dataclass(frozen=True)
class Command:
    """What a command takes.

    Args:
        path: its names, such as ("plugins", "show").
        options: every option's spelling, and whether a value follows it.
        arguments: how its help names the arguments.
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
    return shlex.join(("gptkit", *words))


def for_command(words: Sequence[str], known: Sequence[str], path: tuple[str, ...] = ()) -> str:
    """The line that was probably meant when `words` begin with no known command.

    Args:
        words: what was typed behind `path`.
        known: the commands that there are.
        path: the group of commands, such as ("plugins",).
    """
    first, rest = words[0], words[1:]
    if not path and first.endswith(".toml"):
        return line("train", *words)
    if not path and (first.endswith(".onnx") or Path(first, "recipe.toml").is_file()):
        return line("sample", *words)
    theirs = None if path else COMMANDS.get(first)
    with_recipe = any(word.endswith(".toml") for word in rest)  # run r.toml: not runs
    name = (with_recipe and theirs) or closest(first, known) or theirs
    if name is None:
        return line(*path, "--help")
    return line(*path, *name.split(), *rest)


def for_arguments(words: Sequence[str], command: Command) -> str:
    """The line that was probably meant by `words`, typed behind the command's name."""
    found = corrected(words, command)
    return command.help if found == list(words) else line(*command.path, *found)


def corrected(words: Sequence[str], command: Command) -> list[str]:
    """`words` in the spelling of this command, as far as they are understood."""
    return [word for part in _parts(list(words)) for word in _correct(*part, command)]


def assignments(words: Sequence[str]) -> bool:
    """Whether a word sets a field of the recipe without `--set` before it."""
    before = ("", *words)
    return any(
        _ASSIGNMENT.fullmatch(word) and previous != "--set"
        for previous, word in zip(before, words, strict=False)
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
            yield name, " ", [words.pop(0)] if follows else []


def _correct(option: str, between: str, values: list[str], command: Command) -> list[str]:
    if not option:
        sets = command.reads_recipe and _ASSIGNMENT.fullmatch(values[0])
        return ["--set", *values] if sets else values
    takes_value = command.options.get(option)
    if takes_value is None and not option.startswith("--") and command.options.get(option[:2]):
        takes_value = False  # -n3 has it already
    if takes_value is not None:
        if between == "=" or takes_value:
            return _spelled(option, between, values)
        return [option, *_arguments(values, command)]
    if OPTIONS.get(option) in command.arguments:
        return values
    if key := _field(option, command):
        if _is_switch(key) and not _SWITCHED.issuperset(values[:1] or {""}):
            return ["--set", f"{key}=true", *_arguments(values, command)]
        return ["--set", f"{key}={values[0]}"] if values else [option]
    name = OPTIONS.get(option, option)
    known = {_plain(spelling): spelling for spelling in command.options}
    near = closest(_plain(name), known)
    return _spelled(known[near] if near else option, between, values)


def _arguments(values: list[str], command: Command) -> list[str]:
    return [word for value in values for word in _correct("", " ", [value], command)]


def _is_switch(key: str) -> bool:
    """Whether a field of the recipe is true or false, and may be named without a value."""
    table, _, name = key.partition(".")
    kind = _core_fields().get(table, {}).get(name)
    return bool in (kind, *get_args(kind))


def _field(option: str, command: Command) -> str | None:
    """The recipe's field that other tools set by this option."""
    if not command.reads_recipe:
        return None
    if _DOTTED.fullmatch(option):
        return option[2:]
    name = _plain(option).replace("-", "_")
    for table, fields in _core_fields().items():
        if name in fields and name not in FIELDS:
            return f"{table}.{name}"
    return FIELDS.get(name)


def _core_fields() -> dict[str, dict[str, Any]]:
    """The types of the core's fields by table and name."""
    from gptkit.recipe.options import ModelOptions, TrainOptions  # for mistakes only: it is slow

    tables = {"model": ModelOptions.model_fields, "train": TrainOptions.model_fields}
    return {
        table: {name: field.annotation for name, field in fields.items()}
        for table, fields in tables.items()
    }


def _plain(option: str) -> str:
    """An option without its dashes, which all options share."""
    return option.lstrip("-").replace("_", "-").lower()


def _spelled(option: str, between: str, values: list[str]) -> list[str]:
    return [f"{option}={values[0]}"] if between == "=" else [option, *values]
