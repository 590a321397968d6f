"""Advice for mistyped commands: the line to paste, for the habits of other tools, too."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
_ASSIGNMENT = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+|\[\d+\])+=.*", re.DOTALL)
_DOTTED = re.compile(r"--[A-Za-z_][\w-]*(\.[\w-]+|\[\d+\])+")


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
    name = closest(first, known) or (None if path else COMMANDS.get(first))
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
    if takes_value is not None:
        if between == "=" or takes_value:
            return _spelled(option, between, values)
        return [option, *[w for v in values for w in _correct("", " ", [v], command)]]
    if OPTIONS.get(option) in command.arguments:
        return values
    if key := _field(option, command):
        return ["--set", f"{key}={values[0] if values else 'true'}"]
    name = OPTIONS.get(option, option)
    known = {_plain(spelling): spelling for spelling in command.options}
    near = closest(_plain(name), known)
    return _spelled(known[near] if near else option, between, values)


def _field(option: str, command: Command) -> str | None:
    """The recipe's field that other tools set by this option."""
    if not command.reads_recipe:
        return None
    if _DOTTED.fullmatch(option):
        return option[2:]
    from gptkit.recipe.options import ModelOptions, TrainOptions  # for mistakes only: it is slow

    name = _plain(option).replace("-", "_")
    for table, options in (("model", ModelOptions), ("train", TrainOptions)):
        if name in options.model_fields and name not in FIELDS:
            return f"{table}.{name}"
    return FIELDS.get(name)


def _plain(option: str) -> str:
    """An option without its dashes, which all options share."""
    return option.lstrip("-").replace("_", "-").lower()


def _spelled(option: str, between: str, values: list[str]) -> list[str]:
    return [f"{option}={values[0]}"] if between == "=" else [option, *values]
