"""After an edit of recipe.toml, `resume` takes the new value or refuses it by name: every field."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from safetensors.torch import load_file

import gptkit
from gptkit.errors import RunError, UsageError
from gptkit.recipe import registry
from gptkit.recipe.options import (
    AdamWOptions,
    LoraOptions,
    ModelTable,
    MuonOptions,
    TrainOptions,
)
from gptkit.recipe.recipe import Recipe
from gptkit.runs import train
from gptkit.training.trainer import Trainer
from tests.conftest import TINY

CALLBACKS = [{"use": name} for name in ("lr-decay", "grad-clip", "ema", "log")]
SHAPES = {"use": "cifar10", "source": "shapes", "size": 4, "colors": 8}

REFUSED: dict[str, Any] = {
    "seed": 2,
    "dataset.use": "cifar10",
    "dataset.source": "tinyshakespeare",
    "dataset.block_size": 8,
    "dataset.val_fraction": 0.2,
    "model.init": "other",
    "model.checkpoint": "best",
    "model.preset": "gpt-nano",
    "model.n_layer": 2,
    "model.n_head": 1,
    "model.n_kv_head": 1,
    "model.n_embd": 32,
    "model.head_dim": 4,
    "model.n_inner": 32,
    "model.norm": "rmsnorm",
    "model.position": "rotary",
    "model.mlp": "relu2",
    "model.embed_norm": True,
    "model.qk_norm": True,
    "model.norm_eps": 1e-6,
    "model.rope_theta": 500.0,
    "model.window": 5,
    "model.window_pattern": "SL",
    "model.qkv_bias": False,
    "model.logit_softcap": 15.0,
    "model.bias": False,
    "model.tie_embeddings": False,
    "model.dropout": 0.5,
    "model.freeze": ["wte"],
    "train.optimizer.use": "muon",
    "train.optimizer.learning_rate": 0.5,
    "train.optimizer.betas": [0.5, 0.5],
    "train.optimizer.weight_decay": 0.0,
}
OF_MUON = {"train.optimizer.muon_learning_rate": 0.5, "train.optimizer.muon_momentum": 0.5}
OF_HEADS: dict[str, Any] = {
    "model.qk_norm_scale": True,
    "model.rope_scaling": {
        "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
}  # fmt: skip
OF_LORA: dict[str, Any] = {
    "lora.rank": 4,
    "lora.alpha": 3.0,
    "lora.targets": ["attn.proj"],
    "lora.dropout": 0.5,
}
OF_PIXELS: dict[str, Any] = {
    "dataset.size": 8,
    "dataset.colors": 16,
    "dataset.class_conditional": True,
    "dataset.flip": True,
    "dataset.val_fraction": 0.2,
    "dataset.source": "cifar10",
    "dataset.seed": 1,
}
TEXT = {"use": "text", "tokenizer": "byte", "block_size": 16}
OF_TEXT: dict[str, Any] = {
    "dataset.sources": [{"path": "/a.txt", "weight": 1.0, "text_key": "text"}],
    "dataset.text_key": "content",
    "dataset.endings": [".md"],
    "dataset.errors": "replace",
    "dataset.tokenizer": {"train": 300, "sample_mb": 64},
    "dataset.documents": "join",
    "dataset.order": "shuffle",
    "dataset.val_fraction": 0.2,
}
CHAT = {"use": "chat", "source": "smalltalk", "tokenizer": "byte", "block_size": 256}
OF_CHAT: dict[str, Any] = {
    "dataset.template": "chatml",
    "dataset.special_tokens": ["<|tool|>"],
    "dataset.tokenizer": {"train": 300, "sample_mb": 64},
    "dataset.val_fraction": 0.2,
}
OF_TEXT_TAKEN = {"dataset.processes": 1, "dataset.cache_gb": 1.5}
TAKEN: dict[str, Any] = {
    "train.steps": 6,
    "train.tokens": 384,
    "train.epochs": 5.0,
    "train.batch_size": 2,
    "train.micro_batch_size": 2,
    "train.recompute": True,
    "train.eval_every": 1,
    "train.eval_batches": 2,
    "train.save_every": 1,
    "train.keep": 5,
    "train.device": "auto",
    "train.dtype": "bfloat16",
    "train.compile": False,
    "callbacks.lr-decay.warmup_steps": 3,
    "callbacks.lr-decay.decay": "linear",
    "callbacks.lr-decay.cooldown": 0.1,
    "callbacks.lr-decay.final_fraction": 0.9,
    "callbacks.grad-clip.max_norm": 0.01,
    "callbacks.ema.decay": 0.5,
    "callbacks.ema.name": "average",
    "callbacks.log.every": 2,
    "callbacks.log.sample_tokens": 3,
    "callbacks.log.sample_seed": 4,
    "callbacks.log.sample_prompts": ["to"],
    "callbacks.log.on_error": "warn",
}
ELSEWHERE = {"dataset.path", "dataset.hf", "train.shard"}
"""Tested elsewhere: where the data lies, and whether several processes divide the weights."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A run folder that has trained two of its four steps."""
    return stop(TINY | {"callbacks": CALLBACKS}, tmp_path_factory.mktemp("edited") / "r")


@pytest.fixture
def stopped(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained, tmp_path / "r", symlinks=True)


def stop(recipe: Any, out: Path, start: Path | None = None) -> Path:
    run = gptkit.train(recipe, out=out, start=start, quiet=True)
    shutil.rmtree(run.path / "checkpoints" / "step-00000004")
    (run.path / "checkpoints" / "last").unlink()
    return run.path


def edit(run: Path, key: str, value: Any) -> Any:
    """Write another value into recipe.toml; returns the old one."""
    table = tomllib.loads((run / "recipe.toml").read_text())
    node: Any = table
    *parents, last = key.split(".")
    for part in parents:
        found = [item for item in node if item["use"] == part] if isinstance(node, list) else None
        node = found[0] if found else node[part]
    old = node.get(last)
    if key in ("train.tokens", "train.epochs"):
        del node["steps"]
    node[last] = value
    if key == "dataset.use":
        for option in ("source", "block_size"):
            del node[option]
    (run / "recipe.toml").write_text(tomli_w.dumps(table))
    return old


def files(run: Path) -> dict[Path, bytes]:
    found = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: path.read_bytes() for path in found}


def assert_refused(run: Path, key: str, value: Any) -> None:
    edit(run, key, value)
    before = files(run)
    with pytest.raises(UsageError, match=f"a resumed run keeps its {key}: .*, not ") as caught:
        gptkit.resume(run, quiet=True)
    assert f", not {value!r}" in str(caught.value)
    assert "gptkit train " in str(caught.value.hint)
    assert files(run) == before


def test_every_field_of_the_recipe_and_of_every_plugin_is_here() -> None:
    options = {"model": ModelTable, "train": TrainOptions, "train.optimizer": AdamWOptions}
    options |= {"train.optimizer.": MuonOptions, "lora": LoraOptions}
    fields = {f"{table}.{name}".replace("..", ".") for table, kind in options.items()
              for name in kind.model_fields} - {"train.optimizer"}  # fmt: skip
    for entry in registry.installed("callback"):
        if entry.distribution.startswith("gptkit-"):
            fields |= {f"callbacks.{entry.name}.{n}" for n in registry.load(entry).model_fields}
    for entry in registry.installed("dataset"):
        if entry.distribution.startswith("gptkit-"):
            fields |= {f"dataset.{name}" for name in registry.load(entry).model_fields}
    fields |= set(Recipe.model_fields) - {"dataset", "model", "lora", "train", "callbacks"}
    known = set(ELSEWHERE).union(
        OF_CHAT, REFUSED, OF_MUON, OF_HEADS, OF_LORA, OF_PIXELS, OF_TEXT, OF_TEXT_TAKEN, TAKEN
    )
    assert known - fields == {"dataset.use", "callbacks.log.on_error"}
    assert fields <= known


def test_what_decides_the_weights_is_refused(stopped: Path) -> None:
    written = (stopped / "recipe.toml").read_text()
    for key, value in REFUSED.items():
        (stopped / "recipe.toml").write_text(written)
        assert_refused(stopped, key, value)


def test_what_only_muon_has_is_refused(tmp_path: Path) -> None:
    muon = {"train": TINY["train"] | {"optimizer": {"use": "muon"}}, "callbacks": []}
    run = stop(TINY | muon, tmp_path / "m")
    written = (run / "recipe.toml").read_text()
    for key, value in OF_MUON.items():
        (run / "recipe.toml").write_text(written)
        assert_refused(run, key, value)


def test_what_only_rotated_and_normalised_heads_have_is_refused(tmp_path: Path) -> None:
    model = TINY["model"] | {"position": "rotary", "qk_norm": True}
    run = stop(TINY | {"model": model, "callbacks": []}, tmp_path / "h")
    written = (run / "recipe.toml").read_text()
    for key, value in OF_HEADS.items():
        (run / "recipe.toml").write_text(written)
        assert_refused(run, key, value)


def test_what_only_adapters_have_is_refused(trained: Path, tmp_path: Path) -> None:
    run = stop(TINY | {"lora": {"rank": 2}, "callbacks": []}, tmp_path / "l", trained)
    written = (run / "recipe.toml").read_text()
    for key, value in OF_LORA.items():
        (run / "recipe.toml").write_text(written)
        assert_refused(run, key, value)
    (run / "recipe.toml").write_text(written[: written.index("[lora]")])
    with pytest.raises(UsageError, match=r"keeps its lora\.rank: 2, not None"):
        gptkit.resume(run, quiet=True)


@pytest.mark.slow
def test_what_only_pixels_have_is_refused(tmp_path: Path) -> None:
    recipe = TINY | {"dataset": SHAPES, "callbacks": []}
    run = gptkit.train(recipe, {"train.steps": 1}, out=tmp_path / "p", quiet=True).path
    edit(run, "train.steps", 2)
    written = (run / "recipe.toml").read_text()
    for key, value in OF_PIXELS.items():
        (run / "recipe.toml").write_text(written)
        assert_refused(run, key, value)


def test_what_decides_the_order_and_the_tokens_of_a_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stop(TINY | {"dataset": TEXT, "callbacks": []}, tmp_path / "t")
    written = (run / "recipe.toml").read_text()
    for key, value in OF_TEXT.items():
        (run / "recipe.toml").write_text(written)
        assert_refused(run, key, value)
    (run / "recipe.toml").write_text(written)
    monkeypatch.chdir(tmp_path)
    gptkit.resume(run, OF_TEXT_TAKEN, quiet=True)


def test_what_decides_the_tokens_of_conversations_is_refused(tmp_path: Path) -> None:
    recipe = TINY | {"dataset": CHAT, "callbacks": []}
    run = gptkit.train(recipe, {"train.steps": 1, "train.batch_size": 1}, out=tmp_path / "c",
                       quiet=True).path  # fmt: skip
    edit(run, "train.steps", 2)
    written = (run / "recipe.toml").read_text()
    for key, value in OF_CHAT.items():
        (run / "recipe.toml").write_text(written)
        assert_refused(run, key, value)


def test_a_run_of_an_earlier_version_is_compared_with_its_checkpoint(stopped: Path) -> None:
    about = json.loads((stopped / "environment.json").read_text())
    written = (stopped / "recipe.toml").read_text()
    del about["recipe"]
    (stopped / "environment.json").write_text(json.dumps(about))
    for key in ("model.dropout", "model.mlp", "model.n_layer", "train.optimizer.learning_rate",
                "train.optimizer.weight_decay"):  # fmt: skip
        (stopped / "recipe.toml").write_text(written)
        assert_refused(stopped, key, REFUSED[key])
    (stopped / "recipe.toml").write_text(written)
    gptkit.resume(stopped, quiet=True)
    assert json.loads((stopped / "environment.json").read_text())["recipe"]["seed"] == 1


@pytest.mark.parametrize("key", TAKEN)
def test_what_a_resumed_run_may_change_is_in_use(
    key: str, stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Trainer] = []
    monkeypatch.setattr(train, "_fit", lambda trainer, run, caller: seen.append(trainer))
    old, value = edit(stopped, key, TAKEN[key]), TAKEN[key]
    gptkit.resume(stopped)
    (trainer,) = seen
    assert old != value
    assert f"{key}={value}" in capsys.readouterr().err
    table, *_, name = key.split(".")
    owner: Any = trainer.options if table == "train" else trainer.callbacks[key.split(".")[1]]
    if name == "on_error":
        assert trainer.callbacks._on_error["log"] == value
    else:
        assert getattr(owner, name) == value
    changed = json.loads((stopped / "environment.json").read_text())["changes"][-1]
    assert (changed["step"], changed["set"][key]) == (2, value)
    state = trainer.state
    assert state.batch_size == trainer.options.batch_size
    assert state.steps == {"train.steps": 6, "train.tokens": 6, "train.epochs": state.steps}.get(
        key, 4
    )


def test_the_loss_is_not_measured_on_other_data(stopped: Path) -> None:
    edit(stopped, "dataset.val_fraction", 0.3)
    with pytest.raises(RunError, match=r"was trained with dataset\.val_fraction 0\.1, .* has 0\.3"):
        gptkit.Run(stopped).evaluate()


def test_an_average_that_gets_another_name_goes_on(stopped: Path) -> None:
    gptkit.resume(shutil.copytree(stopped, "same", symlinks=True), quiet=True)
    gptkit.resume(stopped, {"callbacks.ema.name": "average"}, quiet=True)
    last = "checkpoints/step-00000004"
    expected = load_file(Path("same") / last / "model.ema.safetensors")
    found = load_file(stopped / last / "model.average.safetensors")
    assert all(tensor.equal(expected[name]) for name, tensor in found.items())
