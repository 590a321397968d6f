"""What a step folder holds is checked against the model that its state.json describes.

Every folder here is whole: its digests are those of its files.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import Result

from gptkit.errors import CheckpointError
from gptkit.runs import checked, checkpoint, checkpoint_writer, weights
from gptkit.runs.train import train
from tests.test_checkpoint import edit

Command = Callable[..., Result]
Files = dict[str, dict[str, Tensor]]

CALLBACKS = [{"use": "ema"}, {"use": "log", "sample_tokens": 0}]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a single checkpoint and a further set of weights."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "a.txt").write_text("Shall I compare thee to a summer's day?\n" * 20)
    recipe: dict[str, Any] = {
        "dataset": {"use": "char-text", "path": str(folder / "a.txt"), "block_size": 8},
        "model": {"n_layer": 2, "n_head": 2, "n_embd": 8},
        "train": {"steps": 1, "batch_size": 2, "device": "cpu", "optimizer": {"use": "muon"}},
        "callbacks": CALLBACKS,
    }
    return train(recipe, out=folder / "r", report=print).path


@pytest.fixture
def step_folder(good: Path, tmp_path: Path) -> Path:
    """The checkpoint of a copy of that run."""
    shutil.copytree(good, tmp_path / "r", symlinks=True)
    return tmp_path / "r" / "checkpoints" / "step-00000001"


def rewrite(step_folder: Path, change: Callable[[Files], object]) -> None:
    """Change the tensors of a step folder and seal it anew."""
    state, read = checkpoint.load(step_folder)
    files = {name: dict(tensors) for name, tensors in read.items()}
    change(files)
    checkpoint_writer.save(step_folder.parent, state, files)


def state_of(step_folder: Path) -> Any:
    return json.loads((step_folder / "state.json").read_text())


def replace(file: str, name: str, tensor: Tensor | None) -> Callable[[Files], object]:
    """Put a tensor under a name, or remove what is there."""

    def change(files: Files) -> None:
        if tensor is None:
            del files[file][name]
        else:
            files[file][name] = tensor

    return change


TENSORS: dict[str, tuple[str, str, Tensor | None, str]] = {
    "missing weight": ("model", "ln_f.weight", None, "ln_f.weight is missing"),
    "unknown weight": ("model", "h.2.ln_1.weight", torch.ones(8), "is no weight of this model"),
    "transposed": ("model", "h.0.mlp.up.weight", torch.ones(8, 32), r"has the shape \[8, 32\]"),
    "whole numbers": ("model", "ln_f.weight", torch.ones(8, dtype=torch.int64), "hold floats"),
    "average": ("model.ema", "ln_f.bias", torch.ones(1), r"the shape \[1\]"),
    "no generator": ("optimizer", "generator:cpu", None, "generator:cpu is missing"),
    "short generator": (
        "optimizer",
        "generator:cpu",
        torch.zeros(9, dtype=torch.uint8),
        "no state",
    ),
    "its dtype": ("optimizer", "generator:cpu", torch.zeros(5056), "generator:cpu is no state"),
    "its numbers": ("optimizer", "generator:cpu", torch.full((5056,), 255).byte(), "no state"),
    "GPU's": ("optimizer", "generator:cuda", torch.zeros(3).byte(), "generator:cuda is no state"),
    "half a moment": ("optimizer", "wte.weight:exp_avg", None, "exp_avg_sq, step, which its"),
    "other kind": ("optimizer", "h.0.mlp.up.weight:step", torch.tensor(1.0), "step, which its"),
    "other moment": ("optimizer", "x:exp_avg", torch.ones(1), "x has exp_avg, which"),
    "shape": ("optimizer", "ln_f.bias:exp_avg", torch.ones(8, 8), r"exp_avg has .* \[8, 8\]"),
    "steps": ("optimizer", "ln_f.bias:step", torch.ones(8), r"step has the shape \[8\]"),
    "dtype": ("optimizer", "ln_f.bias:exp_avg", torch.ones(8).bool(), "should hold floats"),
}


@pytest.mark.parametrize(("file", "name", "tensor", "fault"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_are_not_those_of_the_model(
    step_folder: Path, file: str, name: str, tensor: Tensor | None, fault: str
) -> None:
    checked.load(step_folder)
    rewrite(step_folder, replace(file, name, tensor))
    with pytest.raises(CheckpointError, match=rf"{file}\.safetensors: damaged.*{fault}"):
        checked.load(step_folder)


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("n_layer", 1, "h.1.* is no weight of this model"),
        ("n_layer", 10**9, "config.n_layer: 1000000000, which the weights do not have"),
        ("n_embd", 16, r"has the shape \[.*8\], state.json describes \[.*16\]"),
        ("n_embd", 2**31 - 2, "has the shape"),
        (
            "vocab_size",
            2**31 - 1,
            r"has the shape \[20, 8\], state.json describes \[2147483647, 8\]",
        ),
        ("block_size", 10**12, "config.block_size: "),
        ("n_embd", 10**30, "config.n_embd: "),
        ("tie_embeddings", False, "lm_head.weight is missing"),
    ],
)
def test_sizes_that_are_not_those_of_the_weights(
    step_folder: Path, field: str, value: object, fault: str
) -> None:
    config = state_of(step_folder)["config"]
    edit(step_folder, config=config | {field: value})
    for read in (checked.load, lambda folder: weights.load_weights(folder, "ema")):
        with pytest.raises(CheckpointError, match=fault):
            read(step_folder)


@pytest.mark.parametrize(
    "name", ["/dev/zero", "../../x", "\0", "a/model.safetensors", "more.safetensors", "model"]
)
def test_a_file_of_another_name_is_never_opened(step_folder: Path, name: str) -> None:
    digests = state_of(step_folder)["sha256"]
    edit(step_folder, sha256=digests | {name: "0" * 64})
    with pytest.raises(CheckpointError, match=r"sha256: .* is no file of a checkpoint"):
        checkpoint.load(step_folder)
    edit(step_folder, sha256={key: value for key, value in digests.items() if "opt" not in key})
    with pytest.raises(CheckpointError, match=r"sha256: has no optimizer\.safetensors"):
        checkpoint.load(step_folder)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
@pytest.mark.parametrize("name", ["state.json", "state.json.sha256", "model.safetensors"])
def test_a_pipe_or_a_device_is_no_file_of_a_checkpoint(step_folder: Path, name: str) -> None:
    (step_folder / name).unlink()
    os.mkfifo(step_folder / name)
    with pytest.raises(CheckpointError, match="not a regular file"):
        checked.load(step_folder)
    (step_folder / name).unlink()
    (step_folder / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="not a regular file"):
        checked.load(step_folder)


@pytest.mark.parametrize(
    "values",
    [
        {"lr": "fast"},
        {"lr": True},
        {"lr": float("nan")},
        {"betas": [0.9, 1.0]},
        {"betas": 0.9},
        {"name": 1},
        {"optimizer": "Muon"},
        {"params": ["wte.weight", "wte.weight"]},
        {"params": ["x"]},
        {"params": [1]},
    ],
    ids=str,
)
def test_parameter_groups_with_other_values(
    step_folder: Path, cli: Command, values: dict[str, Any]
) -> None:
    first, *others = state_of(step_folder)["optimizer_groups"]
    edit(step_folder, optimizer_groups=[first | values, *others])
    done = cli("resume", "r", "--set", "train.steps=2")
    assert done.exit_code == 1
    assert "parameter groups are not those" in done.stderr or "damaged" in done.stderr


def test_how_an_optimizer_computes_is_never_taken_from_a_checkpoint(
    step_folder: Path, good: Path, tmp_path: Path, cli: Command
) -> None:
    groups = state_of(step_folder)["optimizer_groups"]
    flags = {"amsgrad": True, "maximize": True, "differentiable": -1, "foreach": "x"}
    edit(step_folder, optimizer_groups=[group | flags for group in groups])
    shutil.copytree(good, tmp_path / "same", symlinks=True)
    for run in ("r", "same"):
        assert cli("resume", run, "--set", "train.steps=2").exit_code == 0
    ours, theirs = (tmp_path / run / "checkpoints/step-00000002" for run in ("r", "same"))
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "command",
    ["sample r", "eval r", "export r", "resume r --set train.steps=2", "train t.toml --from r"],
)
def test_every_command_refuses_it_in_two_lines(
    step_folder: Path, tmp_path: Path, cli: Command, command: str
) -> None:
    shutil.copy(tmp_path / "r" / "recipe.toml", tmp_path / "t.toml")
    rewrite(step_folder, replace("model", "ln_f.bias", torch.ones(9)))
    done = cli(*command.split())
    assert done.exit_code == 1
    assert "model.safetensors: damaged or incomplete: ln_f.bias has the shape [9]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("path", ["x", "ema/x", "log/average/0", ""])
def test_a_tensor_that_belongs_to_no_callback(step_folder: Path, path: str) -> None:
    rewrite(step_folder, lambda files: files.update(callbacks={path: torch.ones(1)}))
    with pytest.raises(CheckpointError, match=f"{path} has no place in the state of a callback"):
        checked.load(step_folder)


def test_a_state_that_a_callback_cannot_take(
    step_folder: Path, tmp_path: Path, cli: Command, distribution: Callable[..., Path]
) -> None:
    source = """
        from typing import ClassVar

        from gptkit.plugin import Callback

        class Best(Callback):
            contract: ClassVar[int] = 1

            def load_state_dict(self, state):
                self._best = float(state["best"])
    """
    distribution("acme-best", source, callbacks="best = Best")
    recipe = tmp_path / "r" / "recipe.toml"
    recipe.write_text(recipe.read_text() + '\n[[callbacks]]\nuse = "best"\n')
    states = state_of(step_folder)["callbacks"]
    edit(step_folder, callbacks=states | {"best": {"best": [1]}})
    done = cli("resume", "r", "--set", "train.steps=2")
    assert done.exit_code == 1
    assert "(best, acme-best 1.2) cannot restore its state: TypeError: " in done.stderr
    assert "(acme_best.py:" in done.stderr
    assert "hint:  resume with the version of its package that saved it" in done.stderr


@pytest.mark.parametrize("vocabulary", ["a", "abc", "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ"])
def test_a_codec_of_another_number_of_tokens(
    step_folder: Path, cli: Command, vocabulary: str
) -> None:
    codec = state_of(step_folder)["codec"]
    edit(step_folder, codec=codec | {"options": {"vocabulary": vocabulary}})
    done = cli("sample", "r")
    assert done.exit_code == 1
    assert f"codec: CharCodec.token_bytes has {len(vocabulary)} items for 20" in done.stderr


def test_a_codec_that_is_not_that_of_the_data(step_folder: Path, cli: Command) -> None:
    codec = state_of(step_folder)["codec"]
    other = codec["options"]["vocabulary"].replace("a", "é")
    edit(step_folder, codec=codec | {"options": {"vocabulary": other}})
    done = cli("eval", "r")
    assert done.exit_code == 1
    assert "r: the data has another codec than the checkpoint" in done.stderr


def test_data_that_makes_another_model(step_folder: Path, tmp_path: Path, cli: Command) -> None:
    """Where environment.json does not say what the run was trained on."""
    (tmp_path / "r" / "environment.json").unlink()
    (tmp_path / "b.txt").write_text("Thou art more lovely and more temperate.\n" * 20)
    data = ("--set", f"dataset.path={tmp_path / 'b.txt'}")
    done = cli("resume", "r", "--set", "train.steps=2", *data)
    assert done.exit_code == 1
    assert "error: r: vocab_size: the checkpoint of step 1 has 20, the data 18\n" in done.stderr
    assert "hint:  restore the data, or start again" in done.stderr
