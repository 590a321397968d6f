"""Whole ways: a training becomes a file of llama.cpp, SmolLM2's file becomes a run."""

import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

import gptkit
from gptkit.plugin import IGNORE, UsageError
from gptkit_gguf.format import Gguf
from gptkit_gguf.header import read_header
from gptkit_text.codec import TokenizerCodec
from gptkit_text.dataset import Text
from tests import support

Llama = Callable[..., dict[str, Any]]
QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
POEM = "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate.\n"
TEXTS = ["The capital of France is", "Zwölf 12345 🦊\n\n\tx = 1", "  It's 2026, isn't it?"]
SAME = ("tokens", "eos", "prepends", "template", "trained")
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
steps = 40
batch_size = 16
device = "cpu"
compile = false
eval_every = 40
eval_batches = 1
[train.optimizer]
use = "adamw"
learning_rate = 0.01
"""
LLAMA = 'norm = "rmsnorm"\nposition = "rotary"\nmlp = "swiglu"\nbias = false\nn_kv_head = 2'
TRAININGS = {
    "characters, gpt2": ("char-text", "", ""),
    "characters, llama": ("char-text", "", LLAMA),
    "characters, a normalised embedding": ("char-text", "", f"{LLAMA}\nembed_norm = true"),
    "tokens, llama": ("text", "tokenizer = { train = 400 }", LLAMA),
    "tokens without an end, qwen3": (
        "text", 'tokenizer = { train = 400 }\ndocuments = "join"', f"{LLAMA}\nqk_norm = true"),
    "bytes, arcee": ("text", 'tokenizer = "byte"', LLAMA.replace("swiglu", "relu2")),
}  # fmt: skip

QUICK = ("characters, gpt2", "tokens, llama")


def continued(model: Any, ids: list[int], tokens: list[int]) -> list[int]:
    """The likeliest token after `ids`, and after each of those that follow."""
    logits = model.logits(np.array([*ids, *tokens]))
    found: list[int] = logits[len(ids) - 1 : -1].argmax(-1).tolist()
    return found


CASES = [
    case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in TRAININGS
]


@pytest.mark.parametrize("case", CASES)
def test_a_training_continues_in_llama_cpp(case: str, llama: Llama, tmp_path: Path) -> None:
    use, dataset, model = TRAININGS[case]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(use=use, dataset=dataset, model=model), encoding="utf-8")
    run = gptkit.train(recipe, out=tmp_path / "run", quiet=True)
    file = run.export(tmp_path / "m.gguf", to="gguf")
    ours, prompt = gptkit.load(run), "Shall I compare thee to"
    ids = ours.codec.encode(prompt)
    found = llama(file, texts=[prompt], ids=ids, count=20)
    begin = [found["bos"]] if found["prepends"] else []
    assert [*begin, *found["tokens"][0]] == ids
    assert found["greedy"] == continued(ours, ids, found["greedy"])
    assert len(found["greedy"]) == 20


@pytest.fixture(scope="session")
def smollm2() -> Path:
    try:
        return support.smollm2()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{support.SMOLLM2} cannot be downloaded: {error.stderr[-200:]!r}")


@pytest.fixture(scope="module")
def imported(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> gptkit.Run:
    return gptkit.import_model(smollm2, out=tmp_path_factory.mktemp("smollm2") / "run", quiet=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_smollm2_answers_as_in_llama_cpp(smollm2: Path, imported: gptkit.Run, llama: Llama) -> None:
    ours = gptkit.load(imported)
    assert isinstance(ours.codec, TokenizerCodec)
    assert ours.codec.chat_template and "<|im_start|>" in ours.codec.chat_template
    found = llama(smollm2, texts=TEXTS)
    assert found["tokens"] == [ours.codec.divide(text) for text in TEXTS]
    assert found["template"] == ours.codec.chat_template
    shown = []
    for prompt, count in (("The capital of France is", 3), (QUESTION, 10)):
        ids = tokens_of(ours.codec, prompt)
        theirs = llama(smollm2, ids=ids, count=count)["greedy"]
        assert continued(ours, ids, theirs) == theirs
        drawn = list(ours.stream_tokens(ids, tokens=count, temperature=0.0))
        ends = [i for i, token in enumerate(theirs) if token in ours.codec.stop_tokens]
        assert drawn == theirs[: ends[0] if ends else count]
        shown.append(ours.codec.decode(drawn).decode())
    assert shown[0].startswith(" Paris.")
    assert shown[1] == "The capital of France is Paris."


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_smollm2_has_the_loss_that_transformers_computes(
    imported: gptkit.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = imported.export(tmp_path / "hf", to="hf", onnx=False)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(POEM, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = theirs(ids, labels=ids).loss.item()
    assert -gptkit.load(imported).logprobs(POEM).mean() == pytest.approx(expected, abs=1e-4)

    run = gptkit.Run(shutil.copytree(imported.path, tmp_path / "run", symlinks=True))
    recipe = tomllib.loads((run.path / "recipe.toml").read_text(encoding="utf-8"))
    recipe["dataset"] |= {"documents": "mark", "block_size": 200}  # windows of plain tokens
    (run.path / "recipe.toml").write_text(tomli_w.dumps(recipe), encoding="utf-8")
    options = {name: value for name, value in recipe["dataset"].items() if name != "use"}
    val = Text(**options).load().val
    starts = [*range(0, len(val) - 1, 200), len(val) - 1]
    x, y = val[torch.tensor(starts)]
    y[-1, : starts[-2] + 200 - starts[-1]] = IGNORE  # counted in the window before
    with torch.no_grad():
        logits = theirs(x).logits.flatten(0, 1)
    expected = cross_entropy(logits, y.flatten(), ignore_index=IGNORE).item()
    assert run.evaluate().loss == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
def test_smollm2_is_written_again(
    dtype: str, smollm2: Path, imported: gptkit.Run, llama: Llama, tmp_path: Path
) -> None:
    """In float32 with the same tokens as gptkit's; in eight bits nearly so."""
    file = imported.export(tmp_path / "m.gguf", to="gguf", dtype=dtype)
    ours = gptkit.load(imported)
    assert isinstance(ours.codec, TokenizerCodec)
    ids = tokens_of(ours.codec, QUESTION)
    again, first = llama(file, texts=TEXTS, ids=ids, count=40), llama(smollm2, texts=TEXTS)
    assert {key: again[key] for key in SAME} == {key: first[key] for key in SAME}
    theirs = again["greedy"]
    assert ours.codec.decode(theirs[:7]).decode() == "The capital of France is Paris."
    assert continued(ours, ids, theirs) == theirs
    assert read_header(file).fields["general.license"] == "apache-2.0"


def tokens_of(codec: TokenizerCodec, text: str) -> list[int]:
    """The ids of a text in which special tokens are meant."""
    library = Tokenizer.from_str(codec.tokenizer)
    found: list[int] = library.encode(text, add_special_tokens=False).ids
    return found


def test_a_file_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text("hello")
    with pytest.raises(UsageError, match="is no GGUF file"):
        Gguf().read(str(tmp_path / "a.gguf"))


def test_only_its_own_files_are_replaced(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours.gguf", tmp_path / "recipe.toml"
    recipe = RECIPE.format(use="char-text", dataset="", model="").replace("steps = 40", "steps = 1")
    other.write_text(recipe, encoding="utf-8")
    run = gptkit.train(other, out=tmp_path / "run", quiet=True)
    for _ in range(2):
        run.export(ours, to="gguf")
    theirs = tmp_path / "theirs.gguf"
    theirs.write_bytes(ours.read_bytes().replace(b"gptkit, data set", b"another, data se"))
    for path in (other, theirs):
        before = path.read_bytes()
        with pytest.raises(UsageError, match="exists, and gptkit did not write it"):
            run.export(path, to="gguf")
        assert path.read_bytes() == before
