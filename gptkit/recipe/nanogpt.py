"""nanoGPT's config files as recipes. A config is parsed, never executed."""

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from gptkit.errors import RecipeError, UsageError
from gptkit.files import quote
from gptkit.recipe.constants import Constants, read_constants
from gptkit.recipe.options import PRESETS
from gptkit.recipe.problems import problems_of
from gptkit.recipe.recipe import Recipe

DEFAULTS: dict[str, Any] = {
    "out_dir": "out", "eval_interval": 2000, "log_interval": 1, "eval_iters": 200,
    "eval_only": False, "always_save_checkpoint": True, "init_from": "scratch",
    "dataset": "openwebtext", "gradient_accumulation_steps": 40, "batch_size": 12,
    "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768, "dropout": 0.0,
    "bias": False, "learning_rate": 6e-4, "max_iters": 600_000, "weight_decay": 0.1,
    "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0, "decay_lr": True, "warmup_iters": 2000,
    "lr_decay_iters": 600_000, "min_lr": 6e-5, "seed": 1337,
}  # fmt: skip
"""What nanoGPT's train.py takes for what a config does not set."""
SYSTEM: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16", "compile": True}
"""Likewise; where a config does not set them, gptkit chooses."""
WITHOUT_EFFECT = {"backend", "wandb_log", "wandb_project", "wandb_run_name"}
CHARACTERS = "shakespeare_char"

Line = tuple[str, Any, str]
"""A key of the recipe, its value, and a comment."""


@dataclass(frozen=True)
class Converted:
    """A recipe, and what the config has that it has not."""

    recipe: str
    """TOML."""
    notes: tuple[str, ...]
    """One line for each thing that has no counterpart or needs a decision."""


def convert(path: Path) -> Converted:
    """The recipe that does what a nanoGPT config does.

    Raises:
        UsageError: the file is not Python, or a value is not of the type that nanoGPT expects.
        RecipeError: a value is none that a recipe may have.
    """
    if path.suffix == ".toml":
        raise UsageError(
            f"{path}: is no Python file; a TOML file is a recipe already",
            hint=f"gptkit train {quote(path)}",
        )
    found = read_constants(path, DEFAULTS | SYSTEM)
    config = DEFAULTS | {
        name: _typed(path, name, value, (DEFAULTS | SYSTEM)[name])
        for name, value in found.values.items()
        if name in DEFAULTS | SYSTEM
    }
    text = _toml(path, config)
    table = tomllib.loads(text)
    try:
        Recipe.model_validate(table)
    except ValidationError as error:
        raise RecipeError(str(path), problems_of(error, Recipe, table)) from None
    return Converted(text, tuple(_notes(config, found)))


def _typed(path: Path, name: str, value: Any, default: Any) -> Any:
    """A value of the default's type: 1 is a float, too, and 5e3 an int."""
    kind = type(default)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and kind in (int, float):
        with suppress(OverflowError, ValueError):  # infinite, not a number, or too large
            if kind(value) == value:
                return kind(value)
    if type(value) is not kind:
        raise UsageError(
            f"{path}: {name} is {value!r}, nanoGPT expects {_article(kind)}",
            hint=f"nanoGPT's default is {default!r}",
        )
    return value


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "True or False", str: "text"}[kind]


def _toml(path: Path, config: Mapping[str, Any]) -> str:
    tables: list[tuple[str, list[Line]]] = [
        ("", [("seed", config["seed"], "")]),
        ("[dataset]", _dataset(config)),
        ("[model]", _model(config)),
        ("[train]", _train(config)),
        ("[train.optimizer]", _optimizer(config)),
        *(("[[callbacks]]", callback) for callback in _callbacks(config)),
    ]
    out = quote(config["out_dir"])
    text = f"# {_plain(f'From {path.name}.   gptkit train RECIPE --out {out}')}\n"
    for heading, lines in tables:
        text += f"\n{heading}\n" if heading else ""
        text += "".join(_line(*line) for line in lines)
    return text


def _line(key: str, value: Any, comment: str) -> str:
    written = str(value) if isinstance(value, list) else tomli_w.dumps({"v": value})[4:].strip()
    line = f"{key} = {written}"
    return f"{line:<27} # {_plain(comment)}\n" if comment else f"{line}\n"


def _plain(comment: str) -> str:
    """A comment that stays on its line."""
    return "".join(c if c.isprintable() else "?" for c in comment)


def _dataset(config: Mapping[str, Any]) -> list[Line]:
    name, context = config["dataset"], ("block_size", config["block_size"], "")
    if name == CHARACTERS:
        return [("use", "char-text", ""), ("source", "tinyshakespeare", name), context]
    return [
        ("use", "text", ""),
        ("path", f"data/{name}/input.txt", f"{name}: a file or a folder with its text"),
        ("tokenizer", "gpt2", ""),
        ("documents", "mark", "an end token between them"),
        context,
    ]


def _model(config: Mapping[str, Any]) -> list[Line]:
    sizes = {key: config[key] for key in ("n_layer", "n_head", "n_embd")}
    bias = config["bias"]
    if preset := PRESETS.get(config["init_from"]):
        # nanoGPT takes GPT-2's sizes then, with its own GELU, the exact one.
        sizes, bias = {key: preset[key] for key in sizes}, True
    lines = [(key, value, "") for key, value in sizes.items()]
    return [*lines, ("dropout", config["dropout"], ""), ("bias", bias, "")]


def _train(config: Mapping[str, Any]) -> list[Line]:
    parts, size = config["gradient_accumulation_steps"], config["batch_size"]
    lines: list[Line] = [("steps", config["max_iters"], "max_iters")]
    if parts == 1:
        lines.append(("batch_size", size, ""))
    else:
        lines += [
            ("batch_size", size * parts, "batch_size * gradient_accumulation_steps"),
            ("micro_batch_size", size, "batch_size"),
        ]
    lines += [
        ("eval_every", config["eval_interval"], "eval_interval"),
        ("eval_batches", config["eval_iters"], "eval_iters"),
    ]
    if not config["always_save_checkpoint"]:
        lines.append(("keep", 1, "besides the best: --checkpoint best takes that one"))
    system = {key: config[key] for key in SYSTEM if key in config}
    if system.get("dtype") == "float16":
        del system["dtype"]
    return [*lines, *((key, value, "") for key, value in system.items())]


def _optimizer(config: Mapping[str, Any]) -> list[Line]:
    return [
        ("use", "adamw", ""),
        ("learning_rate", config["learning_rate"], ""),
        ("betas", [config["beta1"], config["beta2"]], "beta1, beta2"),
        ("weight_decay", config["weight_decay"], ""),
    ]


def _callbacks(config: Mapping[str, Any]) -> Iterator[list[Line]]:
    if config["decay_lr"]:
        yield [
            ("use", "lr-decay", ""),
            ("warmup_steps", config["warmup_iters"], "warmup_iters"),
            ("final_fraction", _final_fraction(config), "min_lr / learning_rate"),
        ]
    if config["grad_clip"]:
        yield [("use", "grad-clip", ""), ("max_norm", config["grad_clip"], "grad_clip")]
    yield [("use", "log", ""), ("every", config["log_interval"], "log_interval")]


def _final_fraction(config: Mapping[str, Any]) -> float:
    base = config["learning_rate"]
    return float(f"{min(config['min_lr'] / base, 1.0):.6g}") if base > 0 else 1.0


def _notes(config: Mapping[str, Any], found: Constants) -> Iterator[str]:
    for name, source in found.unread.items():
        if name in DEFAULTS or name in SYSTEM:
            yield f"{name}: is not a constant, so nanoGPT's default is taken ({source})"
    yield from (f"not read: {source}" for source in found.skipped)
    known = {*DEFAULTS, *SYSTEM, *WITHOUT_EFFECT}
    for name in [*found.values, *found.unread]:
        if name not in known:
            yield f"{name}: has no counterpart"
    if config["dataset"] != CHARACTERS:
        yield f"dataset: set path in [dataset] to the text of {config['dataset']!r}"
    if config["decay_lr"] and config["lr_decay_iters"] != config["max_iters"]:
        yield "lr_decay_iters: the decay ends with the last step, max_iters"
    if config["decay_lr"] and config["min_lr"] > config["learning_rate"]:
        yield "min_lr: is above learning_rate; the rate stays at learning_rate"
    if config.get("dtype") == "float16":
        yield 'dtype: has no float16; gptkit chooses, or set train.dtype to "float32"'
    if config["init_from"] == "resume":
        yield "init_from: gptkit resume RUN continues a run"
    elif config["init_from"] != "scratch":
        yield f"init_from: the weights of {config['init_from']} are not loaded; they begin random"
    if config["eval_only"]:
        yield "eval_only: gptkit eval RUN measures the loss of a run"
    if found.values.get("wandb_log"):
        yield "wandb_log: the run folder has the figures in metrics.jsonl; a tracker is a callback"
