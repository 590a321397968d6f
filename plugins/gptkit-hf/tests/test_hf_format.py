"""`gptkit export --to hf` and `gptkit import`: real runs, real transformers."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gptkit
from gptkit.plugin import UsageError
from gptkit.testing import check_format
from gptkit_hf import write
from gptkit_hf.format import HuggingFace

TRAIN = {"steps": 2, "batch_size": 2, "device": "cpu", "eval_batches": 1}
LLAMA = {
    "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "norm": "rmsnorm",
    "position": "rotary", "mlp": "swiglu", "bias": False,
}  # fmt: skip
TEXT = {"use": "text", "tokenizer": {"train": 300}, "block_size": 32}
CHARACTERS = {"use": "char-text", "block_size": 32}
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "subwords": (TEXT, LLAMA, "LlamaForCausalLM"),
    "bytes": (TEXT | {"tokenizer": "byte", "documents": "join"}, {}, "GPT2LMHeadModel"),
    "characters": (CHARACTERS, LLAMA | {"mlp": "relu2", "qk_norm": True}, "Qwen3ForCausalLM"),
}
OPEN = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, text = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer(text, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits[0]
drawn = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None)[0].tolist()
torch.save = None
print(json.dumps([type(model).__name__, inputs["input_ids"][0].tolist(), logits.tolist(), drawn]))
"""


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path / "cache"))

    def train(dataset: dict[str, Any], model: dict[str, Any]) -> Path:
        small = {"n_layer": 2, "n_head": 2, "n_embd": 16} | model
        recipe = {"dataset": dataset, "model": small, "train": TRAIN, "callbacks": []}
        return gptkit.train(recipe, out=tmp_path / "run", quiet=True).path

    return train


def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gptkit", *map(str, arguments)],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def export(run: Path, out: Path, **options: Any) -> None:
    gptkit.Run(run).export(out, to="hf", **{"onnx": False, **options})


def opened(folder: Path, text: str) -> list[Any]:
    """What transformers makes of a folder, without the Hub."""
    pytest.importorskip("transformers")
    printed = subprocess.check_output(
        [sys.executable, "-c", OPEN, str(folder), text], text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    found: list[Any] = json.loads(printed)
    return found


@pytest.mark.parametrize("kind", RECIPES)
def test_transformers_opens_what_gptkit_trains(
    kind: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    dataset, model, architecture = RECIPES[kind]
    run = trained(dataset, model)
    export(run, tmp_path / "out", onnx=True)
    name, ids, logits, drawn = opened(tmp_path / "out", "Shall I")
    loaded = gptkit.load(run)
    assert name == architecture
    assert ids == loaded.codec.encode("Shall I")
    expected = loaded.logits(np.array(drawn))  # type: ignore[union-attr]
    assert np.abs(expected[: len(ids)] - logits).max() <= 1e-5 * np.abs(expected).max()
    assert expected.argmax(-1)[len(ids) - 1 : -1].tolist() == drawn[len(ids) :]
    files = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")
    }
    assert {"onnx/model.onnx", "README.md", "tokenizer.json", "model.safetensors"} <= files


@pytest.mark.parametrize("kind", RECIPES)
def test_what_went_out_comes_in_again(
    kind: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    dataset, model, _ = RECIPES[kind]
    run = trained(dataset, model)
    out, back = tmp_path / "out", tmp_path / "back"
    export(run, out)
    assert not (out / "onnx").exists()
    gptkit.import_model(out, out=back, quiet=True)
    first, second = gptkit.load(run), gptkit.load(back)
    ids = np.array(first.codec.encode("Shall I compare"))
    assert second.codec.encode("Shall I compare") == ids.tolist()
    assert second.codec.stop_tokens == first.codec.stop_tokens
    a, b = (each.logits(ids) for each in (first, second))  # type: ignore[union-attr]
    assert np.abs(a - b).max() <= 1e-6 * np.abs(a).max()


def test_an_imported_model_is_trained_further(trained: Callable[..., Path], tmp_path: Path) -> None:
    run = trained(TEXT, LLAMA)
    out, back = tmp_path / "out", tmp_path / "back"
    export(run, out)
    gptkit.import_model(out, out=back, quiet=True)
    changes = {f"train.{name}": value for name, value in (TRAIN | {"steps": 1}).items()}
    resumed = gptkit.resume(back, changes, quiet=True)
    assert resumed.last
    assert resumed.last.step == 1
    again = gptkit.load(back)
    assert again.codec == gptkit.load(run).codec


def test_large_models_are_divided_into_files(trained: Callable[..., Path], tmp_path: Path) -> None:
    run = trained(TEXT, LLAMA)
    export(run, tmp_path / "out", max_shard_gb=0.00003)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert opened(tmp_path / "out", "Shall")[0] == "LlamaForCausalLM"


def test_the_card_tells_what_the_model_is(trained: Callable[..., Path], tmp_path: Path) -> None:
    poem = tmp_path / "poem.txt"
    poem.write_text("Shall I compare thee to a summer's day?\n" * 200)
    run = trained(TEXT | {"path": str(poem), "documents": "join"}, LLAMA)
    export(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: "transformers"\n')
    for told in ("| Architecture | LlamaForCausalLM |", "| Steps | 2 |", "nats per token"):
        assert told in card
    assert '"poem.txt"' in card
    assert str(tmp_path) not in card


def test_a_place_with_other_files_is_kept(trained: Callable[..., Path], tmp_path: Path) -> None:
    run, out = trained(TEXT, LLAMA), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        export(run, out)
    (out / "mine.txt").unlink()
    export(run, out)
    export(run, out)  # its own export is replaced
    for name in (".git", "notes.json", "adapter_model.safetensors", "onnx/mine.json", "data.json/"):
        path = out / name
        path.parent.mkdir(exist_ok=True)
        if name in (".git", "data.json/"):
            path.mkdir()
        else:
            path.write_text("mine")
        with pytest.raises(UsageError, match=f"has {re.escape(name.strip('/'))} beside an earlier"):
            export(run, out)
        assert path.exists()
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    export(run, out)


def test_what_cannot_be_expressed_is_refused_by_name(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    run = trained(TEXT, LLAMA | {"logit_softcap": 5.0})
    done = call("export", run, "--to", "hf", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "model.logit_softcap" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_equal_to_the_model_is_not_kept(
    trained: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(TEXT, LLAMA)
    written = write.write_weights

    def wrong(tensors: Any, path: Path, **options: Any) -> None:
        changed = torch.full((32,), 1.01)
        tensors._makers["model.norm.weight"] = lambda: changed
        written(tensors, path, **options)

    monkeypatch.setattr(write, "write_weights", wrong)
    with pytest.raises(gptkit.GptkitError, match="is not equal to the model: logits differ by"):
        gptkit.Run(run).export(tmp_path / "out", to="hf")
    assert not (tmp_path / "out").exists()


def test_the_contract(tmp_path: Path) -> None:
    path = check_format(HuggingFace(onnx=False), tmp_path)
    assert sorted(each.name for each in path.iterdir())[:2] == ["README.md", "config.json"]


def test_a_folder_or_a_name_is_read(tmp_path: Path) -> None:
    format_ = HuggingFace()
    assert not format_.reads(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert format_.reads(str(tmp_path))
    assert format_.reads("owner/name@v1")
    assert not format_.reads("model.gguf")
    assert not format_.reads("some/where/else.gguf")


def test_more_ends_of_a_sample_and_a_template_come_along(
    saved_model: Callable[..., Path], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, models

    library = Tokenizer(models.BPE({chr(40 + i): i for i in range(62)}, []))
    library.add_special_tokens(["<s>", "</s>", "<|im_end|>"])
    source = saved_model("llama")
    library.save(str(source / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    config["chat_template"] = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [64, 63]}))
    run, out = tmp_path / "run", tmp_path / "out"
    gptkit.import_model(source, out=run, quiet=True)
    codec = gptkit.load(run).codec
    assert codec.encode("()") == [62, 0, 1]
    assert codec.stop_tokens == (64, 63)
    assert codec.chat_template == config["chat_template"]  # type: ignore[attr-defined]
    export(run, out)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    chat = [{"role": "user", "content": "()"}]
    assert theirs.apply_chat_template(chat, return_dict=False) == [0, 1, 64]
    assert theirs("()")["input_ids"] == [62, 0, 1]
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [64, 63]
    weights = {name: tensor.clone() for name, tensor in gptkit_weights(run).items()}
    gptkit.import_model(out, out=tmp_path / "again", quiet=True)
    again = gptkit_weights(tmp_path / "again")
    assert weights.keys() == again.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert gptkit.load(tmp_path / "again").codec == codec


def gptkit_weights(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = run.glob("checkpoints/step-*/model.safetensors")
    return load_file(file)
