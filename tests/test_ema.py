"""A moving average of the weights, from the recipe to what is sampled."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from gptkit.runs import checkpoint

CALLBACKS = [
    {"use": "ema", "decay": 0.5},
    {"use": "log", "every": 1, "sample_tokens": 0},
]


@pytest.fixture
def run(tiny_recipe: Callable[..., Path], cli: Callable[..., Result], tmp_path: Path) -> Path:
    recipe = tiny_recipe(
        train={
            "steps": 8,
            "eval_every": 4,
            "eval_batches": 10**6,
            "optimizer": {"use": "adamw", "learning_rate": 0.02},
        },
        callbacks=CALLBACKS,
    )
    result = cli("train", recipe, "--out", "r")
    assert result.exit_code == 0, result.output
    return tmp_path / "r"


def weights(run: Path, step: int = 8) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    _, tensors = checkpoint.load(run / "checkpoints" / f"step-{step:08}")
    return tensors["model"], tensors["model.ema"]


def losses(run: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "val_loss" in line]


def test_the_average_is_evaluated_and_saved(run: Path) -> None:
    model, ema = weights(run)
    assert model.keys() == ema.keys()
    assert not any(torch.equal(model[name], ema[name]) for name in model)
    for line in losses(run):
        assert 1 < line["val_loss_ema"] < 5
        assert line["val_loss_ema"] != line["val_loss"]


def test_a_resumed_run_continues_the_average_exactly(
    run: Path, cli: Callable[..., Result], tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(run, again, symlinks=True)
    shutil.rmtree(again / "checkpoints/step-00000008")
    result = cli("resume", "again")
    assert result.exit_code == 0, result.output
    expected, found = weights(run), weights(again)
    for before, after in zip(expected, found, strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert losses(run) == losses(again)


def test_the_average_can_be_sampled_evaluated_and_exported(
    run: Path, cli: Callable[..., Result], tmp_path: Path
) -> None:
    def out(*args: object) -> str:
        result = cli(*args)
        assert result.exit_code == 0, result.output
        return result.stdout

    asked = ("--tokens", 40, "--seed", 3)
    sample = out("sample", "r", "--weights", "ema", *asked)
    assert sample != out("sample", "r", *asked)
    measured = json.loads(out("eval", "r", "--weights", "ema", "--json"))
    assert measured["loss"] == pytest.approx(losses(run)[-1]["val_loss_ema"], abs=1e-6)
    out("export", "r", "--weights", "ema", "--out", "ema.onnx")
    assert out("sample", "ema.onnx", *asked) == sample
