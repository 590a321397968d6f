"""transformers.js in Node opens what `gptkit export --to hf` writes, and draws the same tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptkit
from tests.support import node_program

VERSION = "4.3.2"
LLAMA = {"norm": "rmsnorm", "position": "rotary", "mlp": "swiglu", "bias": False, "n_kv_head": 1}
TEXT = {"use": "text", "tokenizer": {"train": 300}}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "LlamaForCausalLM": (TEXT, LLAMA),
    "GPT2LMHeadModel": (TEXT | {"tokenizer": "byte"}, {}),
    "Qwen3ForCausalLM": ({"use": "char-text"}, LLAMA | {"mlp": "relu2", "qk_norm": True}),
}
COUNT = 12

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Asks transformers.js about a folder."""
    script = Path(__file__).with_name("transformers.mjs")
    folder = tmp_path_factory.mktemp("node")
    return node_program(script, folder, f"@huggingface/transformers@{VERSION}")


@pytest.mark.parametrize("architecture", MODELS)
def test_transformers_js_opens_what_gptkit_trains(
    architecture: str,
    node: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path / "cache"))
    dataset, model = MODELS[architecture]
    recipe = {
        "dataset": dataset | {"block_size": 64},
        "model": {"n_layer": 2, "n_head": 2, "n_embd": 32} | model,
        "train": {"steps": 40, "batch_size": 4, "device": "cpu", "eval_batches": 1},
        "callbacks": [],
    }
    run = gptkit.train(recipe, out=tmp_path / "run", quiet=True)
    run.export(tmp_path / "out", to="hf")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [architecture]

    found = node(str(tmp_path / "out"), "Shall I compare", str(COUNT))
    loaded = gptkit.load(run.path)
    assert found["ids"] == loaded.codec.encode("Shall I compare")
    assert len(found["drawn"]) == len(found["ids"]) + COUNT
    logits = loaded.logits(np.array(found["drawn"]))  # type: ignore[union-attr]
    greedy = logits.argmax(-1)[len(found["ids"]) - 1 : -1].tolist()
    assert found["drawn"][len(found["ids"]) :] == greedy
