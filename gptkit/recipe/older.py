"""Keys and values of recipes of earlier versions, which are still read.

0.1 and 0.2 had the optimizer's name and options among the other keys of `[train]`. They are now in
a table of their own, `[train.optimizer]`.

Up to 0.3, `mlp = "gelu"` was GELU's tanh approximation, which is now "gelu_tanh". So it is read in
checkpoints, exported files and run folders of those versions. A recipe elsewhere tells no version.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import tomli_w

from gptkit.files import read_json
from gptkit.recipe.options import MuonOptions, OptimizerOptions
from gptkit.recipe.phrases import short

MOVED = tuple(name for name in MuonOptions.model_fields if name != "use")
"""Keys of `[train]` that are now keys of `[train.optimizer]`."""
ENVIRONMENT_BYTES = 16 << 20
"""A larger environment.json is damaged."""
ONLY_MUON = tuple(name for name in MOVED if name not in OptimizerOptions.model_fields)


def move_keys(table: dict[str, Any]) -> list[str]:
    """Move the keys of an earlier version to where they are now; return their names.

    A key that is in the new place, too, stays: the check of the recipe then refuses it.
    """
    train = table.get("train")
    optimizer = train.get("optimizer", {}) if isinstance(train, dict) else None
    if not isinstance(train, dict) or not isinstance(optimizer, dict | str):
        return []
    named = isinstance(optimizer, str)
    new = {"use": optimizer} if isinstance(optimizer, str) else dict(optimizer)
    moved = [key for key in MOVED if key in train and key not in new]
    new |= {key: train.pop(key) for key in moved}
    if named or moved:
        train["optimizer"] = new
    return ["optimizer", *moved] if named else moved


def move_parts(parts: list[str], value: Any) -> list[str]:
    """The parts of an override's key, after a move to where the option is now."""
    match parts:
        case ["train", "optimizer"] if isinstance(value, str):
            return [*parts, "use"]
        case ["train", key] if key in MOVED:
            return ["train", "optimizer", key]
    return parts


def rename_gelu(model: Any) -> Any:
    """What a record of an earlier version says of a model, in the words of this one."""
    if isinstance(model, dict) and model.get("mlp", "gelu") == "gelu":
        return model | {"mlp": "gelu_tanh"}
    return model


def upgrade(record: Any) -> Any:
    """A checkpoint's or exported file's record of the model, with `config` in today's words."""
    if isinstance(record, dict) and record.get("format") in (1, 2):
        return record | {"config": rename_gelu(record.get("config"))}
    return record


def in_older_run(recipe: Path) -> bool:
    """Whether a recipe.toml is in a run folder that an earlier version made."""
    if recipe.name != "recipe.toml":
        return False
    try:
        environment = read_json(recipe.with_name("environment.json"), limit=ENVIRONMENT_BYTES)
    except (OSError, ValueError):
        return False
    return isinstance(environment, dict) and "format" not in environment


def drop_unused(table: dict[str, Any], moved: Collection[str]) -> None:
    """Drop moved options of Muon if the optimizer is AdamW.

    They had no effect, and the complete recipes of earlier versions contain them.
    """
    train = table.get("train")
    optimizer = train.get("optimizer") if isinstance(train, dict) else None
    if isinstance(optimizer, dict) and optimizer.get("use", "adamw") == "adamw":
        for key in set(ONLY_MUON).intersection(moved):
            optimizer.pop(key, None)


def table_line(optimizer: dict[str, Any]) -> str:
    """The table `[train.optimizer]` in one line, for a hint."""
    given = {key: value for key, value in optimizer.items() if value is not None}
    pairs = (tomli_w.dumps({key: value}).strip() for key, value in given.items())
    text = short(", ".join(re.sub(r"\s+", " ", pair) for pair in pairs), 1000)
    return f"[train.optimizer] {text}".replace("[ ", "[").replace(", ]", "]")
