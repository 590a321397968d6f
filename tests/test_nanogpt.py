"""nanoGPT's configs become recipes that `gptkit check` accepts; no config is ever executed."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Command = Callable[..., Result]

CHARACTERS = """
# a small model of characters, for laptops
out_dir = "out-shakespeare-char"
eval_interval = 250
eval_iters = 200
log_interval = 10
always_save_checkpoint = False
wandb_log = False
wandb_project, wandb_run_name = "shakespeare-char", "mini-gpt"
dataset = "shakespeare_char"
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256
n_layer = 6
n_head = 6
n_embd = n_head * 64
dropout = 0.2
learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = max_iters
min_lr = learning_rate / 10
beta2 = 0.99
warmup_iters = 100
device = "cpu"
compile = False
"""
GPT2 = """
wandb_log = True
batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8
max_iters = 600000
lr_decay_iters = 600000
eval_interval = 1000
eval_iters = 200
log_interval = 10
weight_decay = 1e-1
"""
FINE_TUNE = """
import time
out_dir = "out-shakespeare"
eval_interval = 5
eval_iters = 40
wandb_run_name = "ft-" + str(time.time())
dataset = "shakespeare"
init_from = "gpt2-xl"
batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20
learning_rate = 3e-5
decay_lr = False
grad_clip = 0.0
dtype = "float16"
use_svd = True
"""


@pytest.fixture
def convert(cli: Command, tmp_path: Path) -> Callable[[str], tuple[dict[str, Any], str]]:
    """Converts a config; gives the recipe, complete as `gptkit check` prints it, and the notes."""

    def call(config: str) -> tuple[dict[str, Any], str]:
        (tmp_path / "config.py").write_text(config)
        result = cli("convert", "config.py")
        assert result.exit_code == 0
        (tmp_path / "r.toml").write_text(result.stdout)
        checked = cli("check", "r.toml")
        assert checked.stderr.splitlines()[-1] == "r.toml: ok"
        return tomllib.loads(checked.stdout), result.stderr

    return call


def test_the_small_model_of_characters(convert: Callable[..., Any]) -> None:
    recipe, notes = convert(CHARACTERS)
    assert notes == ""
    dataset, model, train = recipe["dataset"], recipe["model"], recipe["train"]
    assert recipe["seed"] == 1337
    assert (dataset["use"], dataset["source"], dataset["block_size"]) == (
        "char-text", "tinyshakespeare", 256
    )  # fmt: skip
    shape = {"n_layer": 6, "n_head": 6, "n_embd": 384, "dropout": 0.2, "bias": False}
    assert model.items() >= shape.items()
    assert train["optimizer"] == {
        "use": "adamw", "learning_rate": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.1
    }  # fmt: skip
    numbers = {"steps": 5000, "batch_size": 64, "eval_every": 250, "eval_batches": 200, "keep": 1}
    assert train.items() >= (numbers | {"device": "cpu", "compile": False}).items()
    assert "micro_batch_size" not in train
    decay, clip, log = recipe["callbacks"]
    assert (decay["use"], decay["warmup_steps"], decay["final_fraction"]) == ("lr-decay", 100, 0.1)
    assert (clip["use"], clip["max_norm"]) == ("grad-clip", 1.0)
    assert (log["use"], log["every"]) == ("log", 10)


def test_gpt2_of_120_million_parameters(convert: Callable[..., Any]) -> None:
    recipe, notes = convert(GPT2)
    assert recipe["train"]["batch_size"] == 480
    assert recipe["train"]["micro_batch_size"] == 12
    assert recipe["model"]["n_embd"] == 768  # nanoGPT's default
    assert recipe["train"]["optimizer"]["learning_rate"] == 6e-4
    dataset = recipe["dataset"]
    assert (dataset["use"], dataset["tokenizer"], dataset["documents"]) == ("text", "gpt2", "mark")
    assert dataset["path"].endswith("data/openwebtext/input.txt")
    assert "dataset: set path in [dataset] to the text of 'openwebtext'" in notes
    assert "wandb_log: " in notes


def test_what_has_no_counterpart_is_said(convert: Callable[..., Any]) -> None:
    recipe, notes = convert(FINE_TUNE)
    assert [callback["use"] for callback in recipe["callbacks"]] == ["log"]
    assert (recipe["model"]["n_embd"], recipe["model"]["bias"]) == (1600, True)
    assert recipe["train"]["dtype"] == "auto"
    starts = ("use_svd: has no counterpart", "dataset: set path in [dataset] to",
              "dtype: ", "init_from: the weights of gpt2-xl are not loaded")  # fmt: skip
    lines = [line.removeprefix("config.py: ") for line in notes.splitlines()]
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)


def test_a_config_is_never_executed(convert: Callable[..., Any], tmp_path: Path) -> None:
    recipe, notes = convert(
        "from pathlib import Path\n"
        "Path('executed').touch()\n"
        "n_layer = Path('executed').touch() or 3\n"
        "max_iters = 9 ** 9 ** 9\n"
        "if True:\n    n_head = 3\n"
        'out_dir = "x\\nseed = 4"\n'
    )
    assert not (tmp_path / "executed").exists()
    assert (recipe["model"]["n_layer"], recipe["model"]["n_head"], recipe["seed"]) == (12, 12, 1337)
    assert "n_layer: is not a constant, so nanoGPT's default is taken (line 3: n_layer = " in notes
    assert "max_iters: is not a constant" in notes
    assert "not read: line 2: Path('executed').touch()" in notes
    assert "not read: line 5: if True:" in notes


def test_simple_assignments_of_every_form_are_read(convert: Callable[..., Any]) -> None:
    recipe, notes = convert(
        "\ufeffmax_iters = int(1e3)\n"
        "n_layer = n_head = 3\n"
        "n_embd, dropout = 12 * n_head, float(0)\n"
        "n_layer, n_head = n_head - 1, n_layer\n"
        "batch_size, (block_size, x) = 4, (5, 6)\n"
        "eval_iters = int(1e999)\n"
    )
    assert recipe["train"]["steps"] == 1000
    model = recipe["model"]
    assert (model["n_layer"], model["n_head"], model["n_embd"]) == (2, 3, 36)
    assert "not read: line 5: batch_size, (block_size, x)" in notes
    assert "eval_iters: is not a constant" in notes


def test_a_recipe_given_to_convert_is_one_already(cli: Command) -> None:
    result = cli("convert", "r.toml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.endswith("is a recipe already\nhint:  gptkit train r.toml\n")


@pytest.mark.parametrize(
    ("config", "said"),
    [("x = (", "is not a Python file: line 1: '(' was never closed\n"),
     ("x = " + "-" * 50_000 + "1", "is not a Python file: "),
     ("n_layer = '3'", "n_layer is '3', nanoGPT expects a whole number"),
     ("max_iters = 1e999", "max_iters is inf, nanoGPT expects a whole number"),
     ("max_iters = 1e999 - 1e999", "max_iters is nan, nanoGPT expects a whole number"),
     (f"min_lr = 1{'0' * 400}", "min_lr is 1000"),
     ("n_embd = 7", "model: n_embd 7 should be divisible by n_head 12"),
     ("device = 'tpu'", "train.device: ")],
)  # fmt: skip
def test_a_config_that_cannot_be_used(cli: Command, tmp_path: Path, config: str, said: str) -> None:
    (tmp_path / "c.py").write_text(config)
    result = cli("convert", "c.py")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"error: c.py: {said}" in result.stderr


def test_a_config_given_to_train_is_told_to_be_converted(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text(CHARACTERS)
    assert "hint:  gptkit convert c.py reads a nanoGPT config\n" in cli("train", "c.py").stderr
