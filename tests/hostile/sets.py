"""An area: `--set` with values that nobody means, for every key."""

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile.harness import Case

KEYS = [
    *("seed", "model.n_embd", "model.n_layer", "model.bias", "model.preset", "model.dropout"),
    *("model.n_kv_head", "model.norm", "train.steps", "train.tokens", "train.epochs", "train.keep"),
    *("train.batch_size", "train.eval_batches", "train.device", "train.dtype", "train.compile"),
    *("train.optimizer.learning_rate", "train.optimizer.betas", "train.optimizer.use"),
    *("train.optimizer.muon_momentum", "train.learning_rate", "train.optimizer", "train", "model"),
    *("dataset.path", "dataset.source", "dataset.use", "dataset.block_size", "callbacks[0]"),
    *("dataset.val_fraction", "dataset", "callbacks", "callbacks.log.every"),
    *("callbacks.log.sample_prompts", "callbacks.log.sample_seed", "train.device", "seed"),
    *("callbacks.lr-decay.decay", "callbacks[1].use", "callbacks.1.on_error", "callbacks.0.x"),
    *("callbacks.²", "callbacks.².x", "callbacks.٣.x", "callbacks.9", f"callbacks.{'9' * 5000}.x"),
    *("", ".", "a" * 5000, "train." * 2000 + "x", "train.steps.x", "seed[0]", "[0]", "a.b.c", "é"),
]  # fmt: skip
VALUES = [
    *("", " ", "1", "-1", "0", "2", "0.5", "1e5", "1e400", "nan", "inf", "true", "True", "None"),
    *("9" * 5000, "0x" + "f" * 5000, "9" * 20, "[" * 3000, "{a=" * 3000, "[1, 2]", "[0.5, 0.9]"),
    *("[1, [2, [3, {a = 1}]]]", "2024", "2024-01-01", "12:30:00", "\x1b]0;owned\x07", "\u202e"),
    *("a" * 10000, "{use = 1}", '{use = "log"}', '[{use = "log"}]', '"\\u0000"', "'", "''", '""'),
    *("\ud800", "caf\udce9", ".5", "1.", "(0.9,0.99)", "muon", "adamw", "auto", "cpu", "linear"),
    *("a.txt", "../a.txt", "~", "~nobody", "/dev/zero", "-", "#", "1 # one", "a\nb = 2", "日本"),
    *('"2024"', "char-text", "cifar10", "gpt-nano", "['a', 'b']", "a,b", "tinyshakespeare"),
]  # fmt: skip
MEANT = {
    "seed": ["0", "2", "9223372036854775807"],
    "dataset.path": ["2024", "1e5", "true", "[1, 2]", "2024-01-01", "12:30:00", "'7'", "日本"],
    "dataset.source": ["tinyshakespeare"],
    "model.bias": ["true", "false"],
    "model.dropout": ["0", "0.5", "5e-1"],
    "model.preset": ["gpt-nano", '"gpt-nano"'],
    "train.steps": ["7", "7 # steps"],
    "train.tokens": ["1e3", "1000"],
    "train.compile": ["auto", "true"],
    "train.optimizer.betas": ["[0.5, 0.9]", "[0, 0.9]"],
    "train.optimizer.use": ["muon", "adamw"],
    "callbacks.log.sample_prompts": ["['a', 'b']", "[]"],
    "callbacks.lr-decay.decay": ["linear"],
    "callbacks[1].on_error": ["warn"],
}
RECIPE = """seed = 1
[dataset]
use = "char-text"
path = "a.txt"
block_size = 16
[[callbacks]]
use = "log"
[[callbacks]]
use = "lr-decay"
"""


def prepare(base: Path) -> None:
    """A recipe."""
    (base / "good.toml").write_text(RECIPE)


def case(random: Random, base: Path, folder: Path) -> Case:
    """One or two of them."""
    sets = [_one(random) for _ in range(random.choice([1, 1, 1, 2]))]
    options = [word for key, value in sets for word in ("--set", f"{key}={value}")]
    return Case(
        ["check", base / "good.toml", *options], about=ascii(sets)[:300], expect=_as_meant(sets)
    )


def _one(random: Random) -> tuple[str, str]:
    if random.random() < 0.3:
        key = random.choice(list(MEANT))
        return key, random.choice(MEANT[key])
    return random.choice(KEYS), random.choice(VALUES)


def _as_meant(
    sets: Sequence[tuple[str, str]],
) -> Callable[[int, str, str], str | None]:
    """A value counts as TOML or as a text, and what is refused blames the override."""

    def expect(code: int, out: str, err: str) -> str | None:
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        if any(len(line) > 1500 for line in err.splitlines()):
            return "a long error"
        if any(words in err for words in ("Input should", "valid dictionary", "pydantic")):
            return "words of pydantic"
        if not all(line.startswith("error: --set ") for line in errors):
            return "the recipe is blamed"
        if code == 0 and len(sets) == 1:
            return _not_taken(*sets[0], tomllib.loads(out))
        return None

    return expect


def _not_taken(key: str, text: str, table: Any) -> str | None:
    key = key.replace("train.learning_rate", "train.optimizer.learning_rate")
    for part in key.replace("[", ".").replace("]", "").split("."):
        if isinstance(table, list):
            named = [i for i, item in enumerate(table) if item["use"] == part]
            table = table[named[0] if named else int(part)]
        else:
            table = table[part]
    try:
        wanted = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        wanted = {"value": text}
    value = wanted["value"] if len(wanted) == 1 else text
    same = table in (value, text, str(Path(str(value)).expanduser().absolute()))
    same = same or table == str(Path(text).absolute()) or isinstance(value, dict | list)
    return None if same or text == "auto" else f"{table!r} in place of {text!r}"
