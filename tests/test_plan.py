"""`gptkit plan`: what a recipe will take, from its sizes and by a few steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from gptkit.analysis import plan
from gptkit.model.gpt import GPT
from gptkit.recipe import sizes, training_memory
from gptkit.recipe.options import GPTConfig, TrainOptions

Command = Callable[..., Result]
TinyRecipe = Callable[..., Path]

CHOICES: list[dict[str, Any]] = [
    {},
    {"mlp": "gelu_tanh"},
    {"mlp": "relu2", "bias": False},
    {"mlp": "swiglu", "norm": "rmsnorm"},
    {"position": "rotary", "n_kv_head": 2},
    {"position": "rotary", "qk_norm": True},
    {"dropout": 0.1},
]
ROWS, CONTEXT = 12, 64


def saved_bytes(config: GPTConfig, dtype: torch.dtype) -> int:
    """What a forward pass keeps for its backward pass, but for the parameters themselves."""
    model, tokens = GPT(config), torch.zeros(ROWS, CONTEXT, dtype=torch.int64)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32, cache_enabled=False):
            loss = model(tokens, tokens)
    assert loss.isfinite()
    return sum(found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_block_keeps_what_torch_saves_for_the_backward_pass(
    choice: dict[str, Any], dtype: torch.dtype
) -> None:
    shape = {"n_head": 4, "n_embd": 128, "vocab_size": 65, "block_size": CONTEXT} | choice
    one, two = (GPTConfig.model_validate(shape | {"n_layer": n}) for n in (1, 2))
    cast = dtype.itemsize * sizes.part_sizes(one)[2] if dtype != torch.float32 else 0
    expected = ROWS * CONTEXT * training_memory.block_bytes(one, dtype.itemsize) + cast
    block = saved_bytes(two, dtype) - saved_bytes(one, dtype)
    assert expected == pytest.approx(block, rel=0.01)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_belongs_to_a_part(tied: bool) -> None:
    config = GPTConfig(
        n_layer=3, n_head=2, n_embd=8, tie_embeddings=tied, vocab_size=11, block_size=4
    )
    parts, model = sizes.parameters_by_part(config), GPT(config)
    assert sum(parts.values()) == model.n_parameters()
    assert parts["embedding"] == 11 * 8
    assert parts["head"] == (0 if tied else 11 * 8)
    assert parts["mlp"] == sum(p.numel() for block in model.h for p in block.mlp.parameters())


def test_memory_falls_with_recompute_micro_batches_and_shard() -> None:
    config = GPTConfig(n_layer=12, n_head=8, n_embd=512, vocab_size=65, block_size=256)
    options = TrainOptions(batch_size=32)
    whole = training_memory.setting(options)

    def peak(update: dict[str, Any], *, processes: int = 1) -> int:
        changed = options.model_copy(update=update)
        how = training_memory.setting(changed, processes=processes)
        return training_memory.peak(config, changed, how)

    assert training_memory.setting(options, rows=8).accumulates
    assert not whole.accumulates
    assert peak({"recompute": True}) < peak({}) / 3
    assert peak({"micro_batch_size": 8}) < peak({}) / 2
    assert peak({"shard": True}, processes=4) < peak({}, processes=4)
    state = 16 * sizes.n_parameters(config)
    assert state < peak({"micro_batch_size": 1}) < 1.5 * state


@pytest.mark.parametrize(("limit", "rows"), [(9, 0), (10, 1), (59, 5), (60, 6), (1e99, 1 << 20)])
def test_the_largest_batch_is_the_last_that_fits(limit: float, rows: int) -> None:
    assert plan._largest(lambda n: 10 * n, limit) == rows


def test_plan_tells_what_a_training_takes_and_writes_nothing(
    tiny_recipe: TinyRecipe, tmp_path: Path, cli: Command
) -> None:
    recipe = tiny_recipe(train={"steps": 50, "batch_size": 4, "device": "cpu"})
    before = {path for path in tmp_path.rglob("*") if "cache" not in str(path)}
    done = cli("plan", recipe, "--json")
    assert done.exit_code == 0, done.output
    assert {path for path in tmp_path.rglob("*") if "cache" not in str(path)} == before
    found = json.loads(done.stdout)
    block, parameters = found["block_size"], found["parameters"]["all"]
    assert found["tokens"] == 50 * 4 * block
    assert found["tokens_per_parameter"] == found["tokens"] / parameters
    assert (found["steps_for_20_tokens_per_parameter"] - 1) * 4 * block < 20 * parameters
    assert found["memory_without_model"] < found["peak"] < found["memory"]
    assert found["peak_with"].keys() >= {"recompute = true", "micro_batch_size = 2"}
    trial = found["trial"]
    assert trial["peak"] == pytest.approx(found["peak"], rel=0.1)
    assert trial["seconds"] == 50 * trial["seconds_per_step"] > 0
    assert 0 < trial["mfu"] < 1
    assert trial["largest_micro_batch_size"] > 100


def test_plan_says_it_in_words(
    tiny_recipe: TinyRecipe, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptkit.data.progress.EVERY", 0)
    done = cli("plan", tiny_recipe(), "--set", "train.device=cpu", "--set", "train.steps=1")
    assert done.exit_code == 0, done.output
    for words in ("embedding ", "per token", " in 1 step, ", "as in the recipe", "3 steps took"):
        assert words in done.stdout
    assert "\n1 step takes " in done.stdout
    assert "trying the recipe: 3 of 3 steps" in done.stderr
    table, *_ = done.stdout.split("\n\n")
    assert len({len(line) for line in table.split("\n")}) == 1
    assert not any(line.endswith(" ") for line in done.stdout.split("\n"))


def test_what_does_not_fit_is_planned_but_not_tried(
    tiny_recipe: TinyRecipe, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptkit.training.device.total", lambda: 1 << 26)
    done = cli("plan", tiny_recipe(train={"device": "cpu"}))
    assert done.exit_code == 0, done.output
    assert "It does not fit, so it was not tried." in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 3])
def test_a_prediction_is_within_a_tenth_of_the_measured_peak(number: int) -> None:
    from benchmarks.plan import _in_processes

    found = _in_processes(number)
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.1)
