"""[model] freeze: parts that stay as they are, whatever trains the rest."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import Result

import gptkit
from gptkit.errors import RecipeError, UsageError
from gptkit.model.gpt import GPT
from gptkit.recipe import recipe as recipe_file
from gptkit.recipe import sizes, training_memory, tuning
from gptkit.recipe.options import GPTConfig, ModelTable, TrainOptions
from tests.conftest import TINY

Command = Callable[..., Result]
TinyRecipe = Callable[..., Path]

SHAPE: dict[str, Any] = {"n_layer": 4, "n_head": 2, "n_embd": 16}
CALLBACKS = [{"use": "ema", "decay": 0.5}, {"use": "log", "every": 1, "sample_tokens": 0}]
LAST = Path("checkpoints/last")


def tuned(*freeze: str, **shape: Any) -> tuning.Tuning:
    table = ModelTable(**SHAPE | shape, freeze=freeze)
    config = GPTConfig(**table.shape(), vocab_size=11, block_size=8)
    return tuning.find(table, None, config)


def frozen(*freeze: str, **shape: Any) -> set[str]:
    """The names of the frozen parameters, without .weight and .bias."""
    found = tuned(*freeze, **shape)
    names = GPT(found.config).weights()
    return {name.rpartition(".")[0] for name in names if found.freezes(name)}


BLOCK = {"ln_1", "attn.qkv", "attn.proj", "ln_2", "mlp.up", "mlp.proj"}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ((), set()),
        (("wte",), {"wte"}),
        (("lm_head",), {"wte"}),
        (("position", "ln_f"), {"position.wpe", "ln_f"}),
        (("h.3.attn",), {"h.3.attn.qkv", "h.3.attn.proj"}),
        (("h.1-2.mlp.up", "h.2.mlp"), {"h.1.mlp.up", "h.2.mlp.up", "h.2.mlp.proj"}),
        (("h.ln_1",), {f"h.{i}.ln_1" for i in range(4)}),
        (("h.0-1",), {f"h.{i}.{part}" for i in (0, 1) for part in BLOCK}),
        (("h", "h.2"), {f"h.{i}.{part}" for i in range(4) for part in BLOCK}),
    ],
)
def test_entries_name_parts(entries: tuple[str, ...], expected: set[str]) -> None:
    assert frozen(*entries) == expected


def test_a_single_parameter_and_a_head_of_its_own_can_be_frozen() -> None:
    found = tuned("h.0.attn.qkv.weight", "lm_head", tie_embeddings=False)
    names = GPT(found.config).weights()
    assert {n for n in names if found.freezes(n)} == {"h.0.attn.qkv.weight", "lm_head.weight"}


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("wpe", "no part 'wpe'; did you mean \"wte\"? there are wte, position, position.wpe"),
        ("h.4", "'h.4': the model has the blocks h.0 to h.3"),
        ("h.2-4.attn", "'h.2-4.attn': the model has the blocks h.0 to h.3"),
        ("h.3-1", "'h.3-1': the model has the blocks h.0 to h.3"),
        ("h.0.atn", 'did you mean "h.0.attn"?'),
        ("h.0-1.x", "there are h.0-1.attn, h.0-1.attn.qkv"),
        ("h.0-", "no part 'h.0-'"),
        ("h.", "no part 'h.'"),
        ("", "no part ''"),
        ("h.1.mlp.gate", "no part 'h.1.mlp.gate'"),
    ],
)
def test_an_entry_that_names_nothing_is_refused_with_what_there_is(entry: str, fault: str) -> None:
    recipe = TINY | {"model": SHAPE | {"freeze": ["wte", entry]}}
    with pytest.raises(RecipeError) as caught:
        recipe_file.read(recipe)
    (problem,) = caught.value.problems
    assert problem.place == "model.freeze[1]"
    assert fault in problem.fault


def test_a_huge_model_is_refused_as_soon_as_a_small_one() -> None:
    model = SHAPE | {"n_layer": 2**31 - 1, "freeze": ["h.0-2147483640", "h.0-999999999.x", "wte"]}
    with pytest.raises(RecipeError) as caught:
        recipe_file.read(TINY | {"model": model})
    assert [p.place for p in caught.value.problems] == ["model.freeze[0]", "model.freeze[1]"]
    found = tuned("h.0-999999998", n_layer=10**9)
    assert found.trained().layers == 10**9  # the embedding is trained
    assert found.trained().blocks == 3 * 16 * 16 * 4 + 9 * 16 + 2 * 16 + 2 * 16


def test_freezing_everything_is_refused() -> None:
    model = SHAPE | {"freeze": ["h", "wte", "position", "ln_f"]}
    with pytest.raises(RecipeError, match=r"model\.freeze: .*there is nothing to train"):
        recipe_file.read(TINY | {"model": model})


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    recipe = TINY | {"model": SHAPE, "callbacks": []}
    return gptkit.train(recipe, out=tmp_path_factory.mktemp("freeze") / "start", quiet=True).path


FREEZE = ["wte", "h.0-1", "h.3.attn"]


def is_frozen(name: str) -> bool:
    return name.startswith(("wte", "h.0.", "h.1.", "h.3.attn."))


def recipe_of(optimizer: str, **train: Any) -> dict[str, Any]:
    options = TINY["train"] | {"optimizer": {"use": optimizer}} | train
    model = SHAPE | {"freeze": FREEZE, "dropout": 0.1}
    return TINY | {"model": model, "train": options, "callbacks": CALLBACKS}


def weights(run: Path, name: str = "model") -> dict[str, Tensor]:
    return load_file(run / LAST / f"{name}.safetensors")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_is_frozen_stays_and_has_no_moments(
    optimizer: str, start: Path, tmp_path: Path
) -> None:
    run = gptkit.train(recipe_of(optimizer), start=start, out=tmp_path / "r", quiet=True).path
    before = weights(start)
    for name in ("model", "model.ema"):
        for key, tensor in weights(run, name).items():
            assert tensor.equal(before[key]) == is_frozen(key), key
    moments = {key.rpartition(":")[0] for key in load_file(run / LAST / "optimizer.safetensors")}
    assert moments - {"generator"} == {key for key in before if not is_frozen(key)}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_keeps_it_bit_for_bit(optimizer: str, start: Path, tmp_path: Path) -> None:
    recipe = recipe_of(optimizer)
    whole = gptkit.train(recipe, start=start, out=tmp_path / "whole", quiet=True).path
    part = shutil.copytree(whole, tmp_path / "part", symlinks=True)
    shutil.rmtree(part / "checkpoints" / "step-00000004")
    gptkit.resume(part, quiet=True)
    for name in ("model.safetensors", "model.ema.safetensors", "optimizer.safetensors"):
        assert (part / LAST / name).read_bytes() == (whole / LAST / name).read_bytes()


def test_recompute_gives_the_same(start: Path, tmp_path: Path) -> None:
    runs = [
        gptkit.train(recipe_of("adamw", recompute=again), start=start, out=tmp_path / str(again),
                     quiet=True).path
        for again in (False, True)
    ]  # fmt: skip
    a, b = map(weights, runs)
    assert all(tensor.equal(b[name]) for name, tensor in a.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compile_gives_nearly_the_same(start: Path, tmp_path: Path) -> None:
    torch.compiler.reset()  # what other tests compiled in this process
    runs = [
        gptkit.train(recipe_of("adamw", compile=how), {"model.dropout": 0.0}, start=start,
                     out=tmp_path / str(how), quiet=True).path
        for how in (False, True)
    ]  # fmt: skip
    a, b = map(weights, runs)
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, atol=1e-5, rtol=1e-4)
        assert not is_frozen(name) or b[name].equal(tensor)


def test_less_memory_and_fewer_operations_are_counted() -> None:
    config = GPTConfig(n_layer=12, n_head=8, n_embd=512, vocab_size=65, block_size=256)
    options = TrainOptions()
    how = training_memory.setting(options)
    needs, peaks, flops = [], [], []
    for freeze in ([], ["h.6-11"], ["wte", "position", "h.0-5"], ["wte", "position", "h"]):
        table = ModelTable(n_layer=12, n_head=8, n_embd=512, freeze=tuple(freeze))
        trained = tuning.find(table, None, config).trained()
        needs.append(sizes.to_train(config, options, trained=trained).size)
        peaks.append(training_memory.peak(config, options, how, trained))
        flops.append(sizes.flops_per_token(config, trained))
    for numbers in (needs, peaks, flops):
        assert numbers == sorted(numbers, reverse=True)  # type: ignore[type-var]
        assert len(set(numbers)) == 4
    assert needs[0] == sizes.to_train(config, options).size
    assert peaks[0] == training_memory.peak(config, options, how)
    assert flops[0] == sizes.flops_per_token(config)


def test_the_counts_are_those_of_the_model() -> None:
    for freeze in (["wte"], ["h.0-2"], ["h.1.mlp", "ln_f"], ["h.ln_1", "h.2", "position"]):
        found = tuned(*freeze)
        model = GPT(found.config)
        named = {n: p for n, p in model.named_parameters() if not found.freezes(n)}
        inside = {n: p for n, p in named.items() if n.startswith("h.")}
        trained = found.trained()
        assert trained.all == sum(p.numel() for p in named.values())
        assert trained.blocks == sum(p.numel() for p in inside.values())
        assert trained.matrices == sum(p.numel() for p in inside.values() if p.dim() == 2)


def test_plan_tells_what_is_trained(cli: Command, tiny_recipe: TinyRecipe) -> None:
    path = tiny_recipe(model={"freeze": ["wte"]})
    shown = cli("plan", path).stdout
    rows = {line.split()[0]: line.split()[1] for line in shown.splitlines() if line.strip()}
    number = {name: int(rows[name].replace(",", "")) for name in ("all", "trained", "embedding")}
    assert number["trained"] == number["all"] - number["embedding"]


def test_a_run_says_how_much_it_trains(cli: Command, tiny_recipe: TinyRecipe) -> None:
    path = tiny_recipe(model={"freeze": ["h"]})
    assert "M of them trained, on cpu" in cli("train", path, "--out", "r").stderr


def test_freeze_beside_adapters_is_refused() -> None:
    recipe = TINY | {"model": TINY["model"] | {"freeze": ["wte"]}, "lora": {}}
    with pytest.raises(RecipeError, match=r"model\.freeze: should be left out: with \[lora\]"):
        recipe_file.read(recipe)


def test_the_built_model_counts_where_the_recipe_does_not_tell_its_shape() -> None:
    table = ModelTable(n_layer=4, n_head=2, n_embd=16, freeze=("h.3",))
    config = GPTConfig(n_layer=3, n_head=2, n_embd=16, vocab_size=5, block_size=5)
    with pytest.raises(UsageError, match=r"model\.freeze\[0\]: 'h\.3': the model has"):
        tuning.find(table, None, config)
