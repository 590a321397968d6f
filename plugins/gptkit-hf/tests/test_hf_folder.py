"""Folders that are damaged, incomplete, or lie: a clear error, and nothing is written."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file

import gptkit
from gptkit.plugin import RunError, UsageError
from gptkit_hf.folder import imported, open_folder

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def change(path: Path, **changes: Any) -> None:
    contents = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(contents), encoding="utf-8")


def rewrite(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    (folder / SINGLE).unlink()
    save_file(tensors, folder / SINGLE)


def all_logits(folder: Path) -> Any:
    opened = imported(folder, about={})
    return opened.logits([1, 2, 3])


@pytest.fixture
def llama(saved_model: Callable[..., Path]) -> Path:
    folder = saved_model("llama")
    (folder / "tokenizer.json").write_text(tokenizer(65), encoding="utf-8")
    return folder


@pytest.fixture
def sharded(saved_model: Callable[..., Path]) -> Path:
    folder = saved_model("llama", max_shard_size="30KB")
    (folder / "tokenizer.json").write_text(tokenizer(65), encoding="utf-8")
    return folder


def tokenizer(size: int) -> str:
    """A tokenizer.json of single letters with an end token."""
    from tokenizers import Tokenizer, models

    library = Tokenizer(models.BPE({chr(40 + i): i for i in range(size - 1)}, []))
    library.add_special_tokens(["</s>"])
    return str(library.to_str())


def test_one_file_and_many_are_read(llama: Path, tmp_path: Path, saved_model: Any) -> None:
    whole = all_logits(llama)
    shards = saved_model("llama", max_shard_size="30KB")
    assert len(list(shards.glob("model-*-of-*.safetensors"))) > 2
    (shards / "tokenizer.json").write_text(tokenizer(65), encoding="utf-8")
    assert (all_logits(shards) == whole).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_of_numbers_become_float32(llama: Path, dtype: torch.dtype) -> None:
    rewrite(llama, lambda tensors: tensors.update({k: v.to(dtype) for k, v in tensors.items()}))
    model = imported(llama, about={})
    assert {weight.dtype for weight in model.weights.values()} == {torch.float32}


def test_names_without_a_prefix_and_buffers_are_known(saved_model: Callable[..., Path]) -> None:
    folder = saved_model("gpt2")
    expected = open_folder(folder).tensors["transformer.wte.weight"]

    def older(tensors: dict[str, torch.Tensor]) -> None:
        bare = {name.removeprefix("transformer."): t for name, t in tensors.items()}
        tensors.clear()
        tensors.update(bare, **{"h.0.attn.bias": torch.ones(1, 1, 32, 32)})

    rewrite(folder, older)
    assert torch.equal(open_folder(folder).tensors["transformer.wte.weight"], expected)


def truncated(folder: Path) -> None:
    contents = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(contents[:-1000])


def header(contents: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / SINGLE).write_bytes(contents)

    return write


def with_header(table: object, data: bytes = b"") -> bytes:
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


WTE = "model.embed_tokens.weight"
OUTSIDE = {WTE: {"dtype": "F32", "shape": [65, 48], "data_offsets": [0, 10**12]}}
OVERLAP = {
    "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
}


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (truncated, "model.safetensors: cannot be read"),
        (header(b""), "model.safetensors: cannot be read"),
        (header(b"\x80\x02}q\x00."), "model.safetensors: cannot be read"),
        (header(struct.pack("<Q", 2**63) + b"{}"), "model.safetensors: cannot be read"),
        (header(with_header(OUTSIDE)), "model.safetensors: cannot be read"),
        (header(with_header(OVERLAP, b"\0" * 4)), "model.safetensors: cannot be read"),
        (header(with_header([1, 2])), "model.safetensors: cannot be read"),
        (header(with_header({})), "tensors are missing: model.embed_tokens.weight"),
        (lambda f: rewrite(f, lambda t: t.pop("model.norm.weight")), "missing: model.norm.weight"),
        (lambda f: rewrite(f, lambda t: t.update(x=torch.ones(1))), "tensors are not known: x"),
        (
            lambda f: rewrite(f, lambda t: t.update({WTE: torch.ones(64, 48)})),
            f"{WTE} has the shape [64, 48], config.json describes [65, 48]",
        ),
        (
            lambda f: rewrite(f, lambda t: t[WTE].view(-1)[7].fill_(float("nan"))),
            f"{WTE} has NaN or infinite numbers",
        ),
        (
            lambda f: rewrite(f, lambda t: t["lm_head.weight"].fill_(float("inf"))),
            "lm_head.weight has NaN or infinite numbers",
        ),
        (
            lambda f: rewrite(f, lambda t: t.update({WTE: t[WTE].to(torch.int8)})),
            f"{WTE} has numbers of type int8",
        ),
        (lambda f: change(f / "config.json", num_hidden_layers=4), "missing: model.layers.3."),
        (lambda f: change(f / "config.json", num_hidden_layers=2), "not known: model.layers.2."),
        (lambda f: change(f / "config.json", vocab_size=2**31 - 1), "describes [2147483647, 48]"),
        (
            lambda f: change(f / "config.json", tie_word_embeddings=True),
            "lm_head.weight is not equal to model.embed_tokens.weight",
        ),
        (lambda f: (f / "config.json").write_text("{"), "config.json: cannot be read"),
        (lambda f: (f / "config.json").write_text("[" * 10**5), "config.json: cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json: is no JSON object"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / SINGLE).unlink(), "has no model.safetensors"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "not a tokenizer.json"),
        (
            lambda f: (f / "tokenizer.json").write_text(tokenizer(66)),
            "has 66 tokens, but the model knows 65",
        ),
        (
            lambda f: change(f / "generation_config.json", eos_token_id=-1),
            "eos_token_id = -1 should be a token id",
        ),
        (lambda f: change(f / "generation_config.json", eos_token_id=[64, 99]), "stop token 99"),
    ],
)
def test_a_folder_that_is_wrong_is_refused(
    llama: Path, harm: Callable[[Path], object], fault: str
) -> None:
    assert all_logits(llama).shape == (3, 65)
    harm(llama)
    with pytest.raises((UsageError, RunError)) as caught:
        all_logits(llama)
    assert fault in str(caught.value)
    assert str(llama) in str(caught.value)
    assert caught.value.hint


def test_a_pickle_is_refused_with_the_way_to_convert_it(llama: Path) -> None:
    (llama / SINGLE).rename(llama / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"only in pytorch_model\.bin") as caught:
        open_folder(llama)
    assert "safe_serialization=True" in str(caught.value.hint)


def index_of(folder: Path) -> dict[str, str]:
    weight_map: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    return weight_map


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "../model.safetensors", "a/../b.safetensors", "sub/m.safetensors", ".."),
        *("..\\m.safetensors", "C:\\m.safetensors", "m.safetensors\0", "config.json", 7, None),
    ],
)
def test_an_index_names_no_file_outside_the_folder(sharded: Path, name: object) -> None:
    change(sharded / INDEX, weight_map={**index_of(sharded), WTE: name})
    with pytest.raises(RunError, match="names a file that is not in the folder"):
        open_folder(sharded)


def test_a_link_to_a_file_outside_the_folder_is_refused(sharded: Path, tmp_path: Path) -> None:
    shard = sharded / index_of(sharded)[WTE]
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(RunError, match="is a link to a file outside the folder"):
        open_folder(sharded)


def test_the_cache_of_the_hub_has_links_to_its_blobs(llama: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b/snapshots/c0ffee", tmp_path / "models--a--b/blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in llama.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(blobs / file.name)
    assert open_folder(snapshot).options["n_layer"] == 3


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (lambda f: (f / index_of(f)[WTE]).unlink(), "is missing"),
        (lambda f: (f / index_of(f)[WTE]).write_bytes(b"no"), "cannot be read"),
        (lambda f: (f / INDEX).write_text('{"weight_map": 3}'), "is no index of weights"),
        (lambda f: (f / INDEX).write_text("{}"), "is no index of weights"),
        (lambda f: change(f / INDEX, weight_map={**index_of(f), "x": index_of(f)[WTE]}), "x is no"),
    ],
)
def test_shards_that_are_wrong_are_refused(
    sharded: Path, harm: Callable[[Path], object], fault: str
) -> None:
    harm(sharded)
    with pytest.raises(RunError, match=fault):
        open_folder(sharded)


def test_a_shard_that_has_a_tensor_of_another_one_is_refused(sharded: Path) -> None:
    names = sorted(set(index_of(sharded).values()))
    first, last = (load_file(sharded / name) for name in (names[0], names[-1]))
    (sharded / names[-1]).unlink()
    save_file(last | {next(iter(first)): torch.ones(1)}, sharded / names[-1])
    with pytest.raises(RunError, match="is in model-00001-of"):
        open_folder(sharded)


def test_what_a_folder_tells_of_itself_is_kept(llama: Path) -> None:
    (llama / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n")
    change(llama / "generation_config.json", eos_token_id=[64, 3])
    (llama / "chat_template.jinja").write_text("{{ messages }}")
    model = imported(llama, about={"source": "here"})
    assert model.about == {"model_type": "llama", "license": "apache-2.0", "source": "here"}
    assert model.codec.stop_tokens == (64, 3)
    assert model.codec.encode("(") == [64, 0]
    assert model.codec.chat_template == "{{ messages }}"  # type: ignore[attr-defined]
    assert set(model.files) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def test_ids_that_a_tokenizer_does_not_have_become_special_tokens(llama: Path) -> None:
    (llama / "tokenizer.json").write_text(tokenizer(60))
    change(llama / "generation_config.json", eos_token_id=59)
    codec = imported(llama, about={}).codec
    assert codec.token_bytes[58:] == [b"b", *[b""] * 6]  # type: ignore[attr-defined]


def recipe_for(folder: Path, text: Path) -> dict[str, Any]:
    """A recipe that trains a folder's model further, with its own tokenizer."""
    text.write_text("ABCDEFGHIJKLMNOP" * 99, encoding="utf-8")
    return {
        "dataset": {"use": "text", "path": str(text), "tokenizer": str(folder), "block_size": 8,
                    "val_fraction": 0.5},
        "model": {"init": str(folder)},
        "train": {"steps": 1, "batch_size": 2, "device": "cpu", "eval_batches": 1},
        "callbacks": [],
    }  # fmt: skip


@pytest.mark.parametrize("lora", [{}, {"lora": {"rank": 2}}], ids=["all", "lora"])
def test_a_folder_is_trained_further_with_its_own_tokenizer(
    lora: dict[str, Any], llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path / "cache"))
    (llama / "tokenizer_config.json").write_text('{"bos_token": "(", "add_bos_token": true}')
    change(llama / "generation_config.json", eos_token_id=[64, 3])
    recipe = recipe_for(llama, tmp_path / "text.txt")
    run = gptkit.train(recipe | lora, out=tmp_path / "run", quiet=True)
    codec = gptkit.load(run.path).codec
    assert codec == imported(llama, about={}).codec
    assert (codec.encode("A"), codec.stop_tokens) == ([0, 25], (64, 3))
    gptkit.resume(run.path, {"train.steps": 2}, quiet=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="torchrun needs gloo over Unix sockets")
@pytest.mark.parametrize(("shard", "lora"), [("false", ""), ("true", "lora.rank=2")])
def test_two_ranks_train_a_folder_further_as_one_process(
    shard: str, lora: str, llama: Path, tmp_path: Path
) -> None:
    """The weights are also compared with the source, by both."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tomli_w.dumps(recipe_for(llama, tmp_path / "text.txt")), encoding="utf-8")
    sets = [f"--set={each}" for each in (lora, "train.optimizer.learning_rate=1e-3") if each]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for launcher, out, more in (
        ([], "one", []),
        (torchrun, "two", [f"--set=train.shard={shard}"]),
        (torchrun, "again", [f"--set=train.shard={shard}"]),
    ):
        train = ["-m", "gptkit", "train", str(recipe), "--out", str(tmp_path / out), *sets, *more]
        done = subprocess.run(
            [sys.executable, *launcher, *train],
            env=os.environ | {"GPTKIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two, again = (
        load_file(tmp_path / out / "checkpoints" / "last" / SINGLE)
        for out in ("one", "two", "again")
    )
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6)
        assert torch.equal(two[name], again[name])
