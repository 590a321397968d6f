"""A resumed training reads the batches that an uninterrupted one reads, with every option."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import gptkit
from gptkit_text.tokenizer_file import byte_tokenizer

SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 16}
CASES = [
    {"documents": "mask", "order": "shuffle", "tokenizer": {"train": 300}},
    {"documents": "mask", "order": "sample", "tokenizer": "byte", "mixture": True},
    {"documents": "mark", "order": "shuffle", "tokenizer": "byte", "mixture": True},
    {"documents": "mark", "order": "sample", "tokenizer": {"train": 300}},
    {"documents": "join", "order": "sample", "tokenizer": "byte"},
    {"documents": "join", "order": "shuffle", "tokenizer": {"train": 300}, "mixture": True},
]


def recipe(options: dict[str, Any], folder: Path, *, steps: int) -> dict[str, Any]:
    names = ("short", "long") if options.get("mixture") else ()
    sources = [{"path": str(folder / f"{name}.jsonl"), "weight": len(name) / 2} for name in names]
    chosen = {key: value for key, value in options.items() if key != "mixture"}
    return {
        "seed": 3,
        "dataset": {"use": "text", "block_size": 16, "sources": sources, **chosen},
        "model": SHAPE,
        "train": {"steps": steps, "batch_size": 6, "eval_every": 2, "eval_batches": 2,
                  "device": "cpu"},
        "callbacks": [{"use": "log", "every": 1}],
    }  # fmt: skip


@pytest.mark.parametrize("options", CASES, ids=lambda o: "-".join(map(str, o.values())))
def test_a_resumed_training_is_the_uninterrupted_one(
    tmp_path: Path, cache: Path, options: dict[str, Any]
) -> None:
    write_texts(tmp_path)
    whole = gptkit.train(recipe(options, tmp_path, steps=8), out=tmp_path / "whole", quiet=True)
    half = gptkit.train(recipe(options, tmp_path, steps=4), out=tmp_path / "half", quiet=True)
    shutil.rmtree(cache)  # encoded again, to the same tokens
    half = gptkit.resume(half.path, {"train.steps": 8}, quiet=True)
    assert weights(half.path) == weights(whole.path)
    told = [metrics(run.path) for run in (whole, half)]
    assert told[0] == told[1]
    counts = [row["tokens_short"] + row["tokens_long"] for row in told[0] if "tokens_short" in row]
    assert counts == ([96 * step for step in range(1, 9)] if options.get("mixture") else [])


def test_a_resumed_training_has_the_tokens_that_it_began_with(tmp_path: Path) -> None:
    """Also where the same file holds another tokenizer by now."""
    write_texts(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(byte_tokenizer(256))
    run = gptkit.train(recipe({"tokenizer": str(path)}, tmp_path, steps=4), out=tmp_path / "r")
    other = path.read_text().replace('"A":65', '"A":66').replace('"B":66', '"B":65')
    path.write_text(other)
    with pytest.raises(gptkit.GptkitError, match="the data has another codec than the checkpoint"):
        gptkit.resume(run.path, {"train.steps": 8}, quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["false", "true"])
def test_two_ranks_train_as_one(tmp_path: Path, shard: str) -> None:
    """They ask for the tokens at once, and one encodes."""
    write_texts(tmp_path)
    path, found = tmp_path / "recipe.toml", []
    path.write_text(tomli_w.dumps(recipe(CASES[1] | {"order": "shuffle"}, tmp_path, steps=8)))
    for ranks in (1, 2):
        torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", str(ranks))
        train = ("-m", "gptkit", "train", path, "--out", tmp_path / f"{ranks}")
        subprocess.run(
            [sys.executable, *torchrun, *train, "--set", f"train.shard={shard}"],
            env=os.environ | {"GPTKIT_CACHE": str(tmp_path / f"cache-{ranks}")},
            check=True,
            capture_output=True,
            timeout=200,
        )
        found.append(metrics(tmp_path / f"{ranks}"))
    for one, two in zip(*found, strict=True):
        assert one == pytest.approx(two, rel=1e-4)


def write_texts(folder: Path) -> None:
    """Two sources, of which the first has several epochs in 8 steps."""
    for name, count in (("short", 30), ("long", 90)):
        rows = [json.dumps({"text": f"{name} text {i} " * (i % 5)}) + "\n" for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(rows))


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / "step-00000008" / "model.safetensors").read_bytes()


def metrics(run: Path) -> list[dict[str, Any]]:
    """What was recorded, but for the times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "loss", "val_loss", "tokens_short", "tokens_long")
    return [{key: row[key] for key in kept if key in row} for row in rows if "loss" in row]
