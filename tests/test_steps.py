"""The length of a training: steps, tokens or epochs."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import Result

from gptkit.errors import RecipeError, UsageError
from gptkit.recipe import build
from gptkit.recipe.options import TrainOptions
from gptkit.training.steps import total_steps

Command = Callable[..., Result]
TinyRecipe = Callable[..., Path]


@pytest.mark.parametrize(
    ("options", "stride", "expected"),
    [
        ({}, 1, 1000),
        ({"steps": 7}, 1, 7),
        ({"tokens": 20_000_000}, 1, 9766),  # 20,000,000 / 2,048 = 9,765.6
        ({"tokens": 2048}, 1, 1),
        ({"tokens": 2049}, 1, 2),
        ({"epochs": 1}, 1, 313),  # 10,000 items / 32
        ({"epochs": 3}, 64, 15),  # 3 * 157 windows side by side / 32 = 14.7
        ({"epochs": 0.32}, 1, 100),  # exactly: 0.32 as a binary fraction is a little more
        ({"epochs": 1e-9}, 1, 1),
    ],
)
def test_the_length_becomes_steps(options: dict[str, Any], stride: int, expected: int) -> None:
    chosen = TrainOptions(batch_size=32, **options)
    assert total_steps(chosen, block_size=64, windows=10_000, stride=stride) == expected


def test_more_steps_than_can_be_counted() -> None:
    with pytest.raises(UsageError, match=r"train.epochs: is .*2\*\*63 steps"):
        total_steps(TrainOptions(epochs=1e308), block_size=64, windows=10_000, stride=1)
    for options in ({"steps": 2**63}, {"tokens": 10**30}):
        with pytest.raises(ValidationError, match="less than or equal to 9223372036854775807"):
            TrainOptions(**options)


def test_one_length_is_written_and_read_back(tiny_recipe: TinyRecipe) -> None:
    path = tiny_recipe()
    for override, expected in (
        ("train.tokens=100", {"tokens": 100}),
        ("train.epochs=0.5", {"epochs": 0.5}),
        ("train.steps=9", {"steps": 9}),
    ):
        found = build.read(path, [override])
        written = tomllib.loads(found.to_toml())["train"]
        lengths = {k: v for k, v in written.items() if k in ("steps", "tokens", "epochs")}
        assert lengths == expected
        path.write_text(found.to_toml())
        assert build.read(path) == found


def test_two_lengths_in_a_recipe_are_refused(tiny_recipe: TinyRecipe) -> None:
    with pytest.raises(RecipeError) as caught:
        build.read(tiny_recipe(train={"tokens": 100}))  # which has steps, too
    (problem,) = caught.value.problems
    assert problem.place == "train"
    assert problem.fault == "one of steps, tokens, epochs should be set, got steps and tokens"


def test_a_run_is_as_long_as_its_tokens(
    cli: Command, tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    """5 steps of 4 x 16 tokens; the schedule ends there, and a resumed run is complete."""
    done = cli("train", tiny_recipe(), "--set", "train.tokens=300", "--out", "r")
    assert done.exit_code == 0, done.stderr
    assert ", 5 steps" in done.stderr
    lines = (tmp_path / "r/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 5
    assert (tmp_path / "r/checkpoints/step-00000005").is_dir()
    assert "complete at step 5" in cli("resume", "r").stderr
