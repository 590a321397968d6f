"""Recipes of 0.1 and 0.2, which had the optimizer's options among the other keys of `[train]`."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from gptkit.errors import RecipeError
from gptkit.recipe import recipe
from gptkit.recipe.options import AdamWOptions, MuonOptions, OptimizerOptions

Command = Callable[..., Result]
DATA = Path(__file__).parent / "data/v0.1"
COMPLETE = """
[dataset]
use = "char-text"
[train]
optimizer = "adamw"
learning_rate = 0.01
muon_learning_rate = 0.02
muon_momentum = 0.95
betas = [
    0.9,
    0.95,
]
"""
"""The optimizer in the complete recipe that a run folder of 0.1 or 0.2 has."""


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., tuple[OptimizerOptions, list[str]]]:
    """Reads a text as r.toml; gives the optimizer's options and the lines that were shown."""

    def call(text: str, overrides: Sequence[str] = ()) -> tuple[OptimizerOptions, list[str]]:
        (tmp_path / "r.toml").write_text(text)
        lines: list[str] = []
        found = recipe.read(tmp_path / "r.toml", overrides, report=lines.append)
        return found.train.optimizer, lines

    return call


def table(train: str) -> str:
    return f'[dataset]\nuse = "char-text"\n[train]\n{train}\n'


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (COMPLETE, [], AdamWOptions(learning_rate=0.01)),
        (COMPLETE, ["train.optimizer=muon"], MuonOptions(learning_rate=0.01)),
        (COMPLETE.replace("0.95\nbetas", "0.5\nbetas"), ["train.optimizer=muon"],
         MuonOptions(learning_rate=0.01, muon_momentum=0.5)),
        (table('optimizer = "muon"\nmuon_momentum = 0.5'), [], MuonOptions(muon_momentum=0.5)),
        (table('optimizer = "muon"\nmuon_momentum = 0.5'), ["train.optimizer.use=adamw"],
         AdamWOptions()),
        (table("betas = [0.5, 0.6]"), [], AdamWOptions(betas=(0.5, 0.6))),
        (table("[train.optimizer]\nlearning_rate = 0.5"), ["train.learning_rate=0.25"],
         AdamWOptions(learning_rate=0.25)),
        (table("learning_rate = 0.5"), ["train.optimizer.learning_rate=0.25"],
         AdamWOptions(learning_rate=0.25)),
        (table(""), ['train={optimizer = "muon", weight_decay = 0.0}'],
         MuonOptions(weight_decay=0.0)),
        (table(""), ["train.muon_momentum=0.5"], AdamWOptions()),
        (table(""), ['train.optimizer={use = "muon"}'], MuonOptions()),
    ],
)  # fmt: skip
def test_old_keys_mean_what_they_did(
    read: Callable[..., Any], text: str, overrides: list[str], expected: OptimizerOptions
) -> None:
    assert read(text, overrides)[0] == expected


def test_a_line_shows_the_new_table(read: Callable[..., Any], tmp_path: Path) -> None:
    _, lines = read(COMPLETE)
    where = f"hint:  {tmp_path / 'r.toml'}: the optimizer's options have a table of their own now: "
    new = '[train.optimizer] use = "adamw", learning_rate = 0.01, betas = [0.9, 0.95]'
    assert lines == [where + new]
    names, values = new.removeprefix("[train.optimizer] ").split(", ", 1)
    assert read(table(f"[train.optimizer]\n{names}\n{values.replace(', b', chr(10) + 'b')}")) == (
        AdamWOptions(learning_rate=0.01), []
    )  # fmt: skip


def test_a_line_shows_the_new_override(read: Callable[..., Any]) -> None:
    _, lines = read(table(""), ["train.learning_rate=1e-2", "train.optimizer=muon"])
    assert lines == [
        "hint:  --set train.learning_rate=1e-2 is now written "
        "--set train.optimizer.learning_rate=1e-2",
        "hint:  --set train.optimizer=muon is now written --set train.optimizer.use=muon",
    ]


def test_a_key_in_both_places_is_refused(read: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        read(table("learning_rate = 0.5\n[train.optimizer]\nlearning_rate = 0.25"))
    (problem,) = caught.value.problems
    assert problem.place == "train.learning_rate"
    assert problem.fault == "is an option of [train.optimizer], which has it, too; remove it here"


def test_an_options_value_is_checked_at_its_new_place(read: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError, match=r"train\.optimizer\.learning_rate: should be greater"):
        read(table("learning_rate = -1"))


def test_the_command_line_shows_the_line_once(cli: Command, tiny_recipe: Any) -> None:
    done = cli("train", tiny_recipe(train={"learning_rate": 0.5, "steps": 1}), "--out", "r")
    assert done.exit_code == 0, done.stderr
    shown = "[train.optimizer] learning_rate = 0.5"
    assert done.stderr.count(shown) == 1
    assert (
        '[train.optimizer]\nuse = "adamw"\nlearning_rate = 0.5' in Path("r/recipe.toml").read_text()
    )
    again = cli("check", "r/recipe.toml")
    assert again.exit_code == 0
    assert "hint" not in again.stderr


def test_runs_of_both_times_have_the_same_fields(
    cli: Command, tiny_recipe: Any, tmp_path: Path
) -> None:
    shutil.copytree(DATA / "text", tmp_path / "old")
    assert cli("train", "old/recipe.toml", "--set", "train.steps=1", "--out", "new").exit_code == 0
    for run in ("old", "new"):
        shown = json.loads(cli("runs", "show", run, "--json").stdout)["recipe"]
        assert '[train.optimizer]\nuse = "adamw"\nlearning_rate = 0.01\n' in shown
    compared = json.loads(cli("runs", "compare", "old", "new", "--json").stdout)
    differing = compared[0].keys() - {"run", "step", "val_loss", "best_val_loss", "dataset"}
    assert differing == {"train.steps"}
