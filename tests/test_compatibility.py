"""What gptkit 0.1 wrote is still resumed, sampled, evaluated and exported: real files of its own.

`data/v0.1` was made by gptkit 0.1.0. `expected.json` holds what it drew and measured there;
`RUN-step-N.safetensors` are the weights with which it ended the run that the tests resume.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import Result

from gptkit.onnx.proof.prove import stopped
from gptkit.onnx.runtime.generate_session import GenerateSession
from gptkit.onnx.runtime.model import load_exported
from gptkit.recipe import recipe
from gptkit.runs import checkpoint
from gptkit.runs.run_folder import RunFolder
from gptkit.sampling.rule import SamplingOptions

DATA = Path(__file__).parent / "data/v0.1"
EXPECTED = json.loads((DATA / "expected.json").read_text())
LAST_STEP = {"text": 60, "pixels": 40}

Command = Callable[..., Result]


@pytest.fixture(params=LAST_STEP)
def run_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a run folder, whose newest checkpoint is not the recipe's last step."""
    return shutil.copytree(DATA / request.param, tmp_path / request.param)


def sample(cli: Command, model: Path, *more: str) -> list[list[int]]:
    settings = ["--ids", "--seed", "3", "--samples", "2", "--top-k", "9", "--tokens", "60"]
    done = cli("sample", model, *settings, *more)
    assert done.exit_code == 0, done.stderr
    return [list(map(int, line.split())) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("model", EXPECTED["sample"])
def test_the_same_tokens_are_drawn(model: str, cli: Command) -> None:
    assert sample(cli, DATA / model) == EXPECTED["sample"][model]


def test_the_same_loss_is_measured(run_folder: Path, cli: Command) -> None:
    done = cli("eval", run_folder, "--json", "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    found, expected = json.loads(done.stdout), EXPECTED["eval"][run_folder.name]
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_a_resumed_run_ends_with_the_same_weights(run_folder: Path, cli: Command) -> None:
    """Almost: the last bits of sums depend on the processor."""
    steps = LAST_STEP[run_folder.name]
    done = cli("resume", run_folder)
    assert done.exit_code == 0, done.stderr
    found = load_file(run_folder / f"checkpoints/step-{steps:08d}/model.safetensors")
    expected = load_file(DATA / f"{run_folder.name}-step-{steps}.safetensors")
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    if run_folder.name == "text":
        lines = (run_folder / "metrics.jsonl").read_text().splitlines()
        logged = [json.loads(line)["step"] for line in lines]
        assert logged == sorted(logged)
        assert logged[-1] == steps


def test_a_run_is_exported(run_folder: Path, cli: Command, tmp_path: Path) -> None:
    done = cli("export", run_folder, "--onnx", "--out", "again.onnx")
    assert done.exit_code == 0, done.stderr
    again = sample(cli, tmp_path / "again.onnx", "--device", "cpu")
    assert again == EXPECTED["sample"][run_folder.name]


def test_runs_are_listed_and_compared(cli: Command, tmp_path: Path) -> None:
    shutil.copytree(DATA, tmp_path / "runs")
    listed = json.loads(cli("runs", "list", "--json").stdout)
    assert {(row["run"], row["step"]) for row in listed} == {("runs/text", 40), ("runs/pixels", 20)}
    compared = cli("runs", "compare", "runs/text", "runs/pixels", "--json")
    assert [row["step"] for row in json.loads(compared.stdout)] == [40, 20]


@pytest.mark.parametrize("model", ["text.onnx", "text-int8.onnx", "kit/generate.onnx"])
def test_an_older_file_ends_at_stops(model: str) -> None:
    """Its graph knows a single stop token; what reads the samples ends them at all others."""
    session = GenerateSession(DATA / model, "cpu")
    prompts, sampling = np.array([[1, 2], [3, 4]]), SamplingOptions(seed=2)
    endless = session.generate(prompts, 40, sampling)
    first, second = (int(endless[row, 5]) for row in (0, 1))
    one = session.generate(prompts, 40, sampling, stop_tokens=[first])
    assert one.tolist() == stopped(endless, [first]).tolist()
    both = session.generate(prompts, 40, sampling, stop_tokens=[first, second])
    assert both.tolist() == endless.tolist()


def test_an_older_models_text_ends_at_a_stop_text(cli: Command) -> None:
    asked = ["--seed", "3", "--tokens", "60", "--device", "cpu"]
    for model in ("text", "text.onnx", "text-int8.onnx"):
        whole = cli("sample", DATA / model, *asked).stdout
        stop = whole[30:32]
        done = cli("sample", DATA / model, *asked, "--stop", stop)
        assert done.stdout == whole[: whole.index(stop, 1)] + "\n"


def mlp_of(run: Path) -> str:
    return checkpoint.load_state(RunFolder(run).step_folder()).config.mlp


def test_gelu_was_the_tanh_approximation(cli: Command, tmp_path: Path) -> None:
    """In recipe, checkpoint, comparison, exported file; a recipe elsewhere means the exact one."""
    shutil.copytree(DATA, tmp_path / "runs")
    old = Path("runs/text")
    assert 'mlp = "gelu"\n' in (old / "recipe.toml").read_text()
    assert load_exported(Path("runs/text.onnx")).metadata.config.mlp == "gelu_tanh"
    assert mlp_of(old) == "gelu_tanh"
    assert 'mlp = "gelu_tanh"\n' in json.loads(cli("runs", "show", old, "--json").stdout)["recipe"]
    few = ["--set", "train.steps=1"]
    began = cli("train", old / "recipe.toml", *few, "--from", old, "--out", "begun")
    assert began.exit_code == 0, began.stderr
    assert 'mlp = "gelu_tanh"\n' in Path("begun/recipe.toml").read_text()

    shutil.copy(old / "recipe.toml", "mine.toml")
    refused = cli("train", "mine.toml", *few, "--from", old, "--out", "other")
    assert "its mlp is 'gelu_tanh', the recipe's 'gelu'" in refused.stderr
    fresh = cli("train", "mine.toml", *few, "--out", "exact")
    assert fresh.exit_code == 0, fresh.stderr
    assert mlp_of(Path("exact")) == "gelu"
    assert cli("resume", "exact", "--set", "train.steps=2").exit_code == 0  # and stays so
    assert mlp_of(Path("exact")) == "gelu"
    compared = json.loads(cli("runs", "compare", old, "exact", "--json").stdout)
    assert [row["model.mlp"] for row in compared] == ["gelu_tanh", "gelu"]


def test_a_resumed_older_run_keeps_its_gelu(cli: Command, tmp_path: Path) -> None:
    """Also what 0.3 wrote in environment.json, and what is resumed again with changes."""
    run = shutil.copytree(DATA / "text", tmp_path / "text")
    environment = json.loads((run / "environment.json").read_text())
    environment["recipe"] = recipe.read(run / "recipe.toml").flat() | {"model.mlp": "gelu"}
    (run / "environment.json").write_text(json.dumps(environment))
    for change in ("train.steps=41", "train.steps=42"):
        done = cli("resume", run, "--set", change)
        assert done.exit_code == 0, done.stderr
        assert f"changed: {change}\n" in done.stderr
        assert 'mlp = "gelu_tanh"\n' in (run / "recipe.toml").read_text()
        assert mlp_of(run) == "gelu_tanh"
    refused = cli("resume", run, "--set", "model.mlp=gelu", "--set", "train.steps=43")
    assert refused.exit_code == 2
    assert "a resumed run keeps its model.mlp: 'gelu_tanh', not 'gelu'" in refused.stderr
