"""Conversations of gptkit-chat in the core: packed windows, exact resumption, evaluation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

import gptkit
from gptkit.model.gpt import GPT
from gptkit.recipe.options import GPTConfig
from gptkit_chat.dataset import Chat

RECIPE: dict[str, Any] = {
    "seed": 1,
    "dataset": {"use": "chat", "block_size": 64, "val_fraction": 0.2},
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 32, "position": "rotary"},
    "train": {"steps": 4, "batch_size": 2, "eval_every": 2, "save_every": 2, "device": "cpu"},
}


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    rows = [{"prompt": f"q{i}", "completion": f"a{i}" * (1 + i % 3)} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_loss_of_a_window_is_that_of_its_conversations_alone(chats: Path) -> None:
    losses = []
    for documents in ("mask", "pad"):
        data = Chat(path=str(chats), block_size=100, documents=documents, val_fraction=0.2).load()
        config = GPTConfig(
            vocab_size=data.vocab_size, block_size=100, n_layer=2, n_head=2, n_embd=32
        )
        x, y = data.train[torch.arange(len(data.train))]
        losses.append(GPT(config, seed=3)(x, y, None, data.document_end).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_resumed_run_is_the_uninterrupted_one(
    chats: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    recipe = RECIPE | {"dataset": RECIPE["dataset"] | {"path": str(chats)}}
    (tmp_path / "chat.toml").write_text(tomli_w.dumps(recipe), encoding="utf-8")
    whole = gptkit.train(tmp_path / "chat.toml", out=tmp_path / "whole")
    half = gptkit.train(tmp_path / "chat.toml", ["train.steps=2"], out=tmp_path / "half")
    gptkit.resume(half, ["train.steps=4"])
    step = "checkpoints/step-00000004"
    for name in ("model.safetensors", "optimizer.safetensors", "codec.json"):
        files = [run.path / step / name for run in (whole, half)]
        assert len({file.read_bytes() for file in files if file.exists()}) <= 1, name
    said = cli("eval", whole.path, "--json")
    measured = json.loads(said.stdout)
    saved = json.loads((whole.path / step / "state.json").read_text())
    assert measured["loss"] == pytest.approx(saved["val_loss"], abs=1e-5)
