"""`gptkit import`: a model that a format reads becomes a run at step 0, or nothing is kept."""

import shutil
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import PrivateAttr
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import Result

import gptkit
from gptkit.errors import ExportError, PluginError, RunError, UsageError
from gptkit.model.gpt import GPT
from gptkit.plugin import Format, ImportedModel, compare_logits
from gptkit.recipe import formats
from gptkit.recipe.options import GPTConfig
from gptkit.runs import checkpoint
from gptkit.runs.importing import import_model
from gptkit.runs.run_folder import RunFolder
from gptkit_char_text.codec import CharCodec

Command = Callable[..., Result]

TEXT = "shall i compare thee to a summer's day?\n" * 40
LETTERS = "".join(sorted(set(TEXT)))
N = len(LETTERS)


class Counted(Mapping[str, Tensor]):
    """Tensors that are made when they are asked for; knows how many are in memory at once."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        self.asked.append(name)
        return self.tensors[name].clone()

    def __iter__(self) -> Any:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class Memory(Format):
    """Reads a model that a test gives it."""

    contract = 1
    suffix = ".none"

    _model: ImportedModel = PrivateAttr()

    @classmethod
    def of(cls, model: ImportedModel) -> "Memory":
        made = cls()
        made._model = model
        return made

    def write(self, model: Any, path: Path) -> None:
        raise NotImplementedError

    def reads(self, source: str) -> bool:
        return source.endswith(".none")

    def read(self, source: str) -> ImportedModel:
        return self._model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def imported(**changes: Any) -> ImportedModel:
    """A small model of the letters of a text; `changes` replace parts of what is read."""
    config = GPTConfig(
        vocab_size=len(LETTERS), block_size=16, n_layer=2, n_head=2, n_embd=16, position="rotary"
    )
    torch.manual_seed(1)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)

    def logits(ids: Any) -> Any:
        with torch.no_grad():
            return model.logits(torch.tensor([ids]))[0].numpy()

    found = {
        "config": config.model_dump(mode="json"),
        "weights": Counted({name: tensor.detach() for name, tensor in model.weights().items()}),
        "codec": CharCodec(vocabulary=LETTERS),
        "files": {"notes.txt": b"about it"},
        "dataset": lambda run: {"use": "char-text", "path": str(run / "../text.txt"),
                                "block_size": 8},
        "about": {"license": "MIT"},
        "logits": logits,
    }  # fmt: skip
    return ImportedModel(**found | changes)


def run_import(model: ImportedModel, out: str = "r") -> RunFolder:
    return import_model("a/b.none", Memory.of(model), out=Path(out), report=lambda line: None)


def test_an_imported_model_is_a_run_at_step_0(folder: Path, cli: Command) -> None:
    model = imported()
    run = run_import(model)
    assert (run.path / "notes.txt").read_bytes() == b"about it"
    assert run.read_environment()["imported"] == {"source": "a/b.none", "license": "MIT"}
    loaded = gptkit.load(run.path)
    ids = loaded.codec.encode("summer")
    np.testing.assert_allclose(loaded.logits(np.array(ids)), model.logits(ids), atol=1e-5)
    assert cli("sample", "r", "--tokens", "5").exit_code == 0
    assert "loss" in cli("eval", "r").stdout
    assert cli("export", "r", "--out", "m.onnx").exit_code == 0
    assert cli("check", "r/recipe.toml").exit_code == 0
    assert isinstance(model.weights, Counted)
    assert sorted(model.weights.asked) == sorted(model.weights), "each is read once"


def test_a_training_goes_on_from_an_imported_model(folder: Path) -> None:
    run = run_import(imported())
    few = {"train.steps": 4, "train.batch_size": 2, "train.eval_batches": 1, "train.save_every": 2}
    before = gptkit.load(run.path).logits(np.arange(8))
    still = {"train.optimizer.learning_rate": 1e-30}
    gptkit.resume(run.path, few | still, quiet=True)
    assert [p.name for p in checkpoint.step_folders(run.checkpoints)][-1] == "step-00000004"
    np.testing.assert_allclose(gptkit.load(run.path).logits(np.arange(8)), before, atol=1e-6)
    gptkit.resume(run.path, {"train.steps": 6}, quiet=True)
    assert gptkit.Run(run.path).last.step == 6  # type: ignore[union-attr]
    kept = [checkpoint.step_of(path) for path in checkpoint.step_folders(run.checkpoints)]
    assert kept[0] == 0, "the imported weights are nowhere else"
    assert len(kept) <= 4  # two newest, the best, the imported
    assert run.read_environment()["imported"]["license"] == "MIT"


def tensors_with(**changes: Any) -> Mapping[str, Tensor]:
    return Counted({**imported().weights, **{k.replace("_", "."): v for k, v in changes.items()}})


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"config": {}}, PluginError, "config: vocab_size: is required"),
        ({"weights": {}}, RunError, "is missing"),
        ({"weights": tensors_with(more=torch.ones(1))}, RunError, "more is no weight of this"),
        (
            {"weights": tensors_with(wte_weight=torch.ones(3, 16))},
            RunError,
            r"wte.weight has the shape \[3, 16\], its config describes \[19, 16\]",
        ),
        (
            {"weights": tensors_with(wte_weight=torch.full((N, 16), torch.nan))},
            RunError,
            "wte.weight holds numbers that are not finite",
        ),
        (
            {"weights": tensors_with(wte_weight=torch.ones(N, 16))},
            ExportError,
            "is not equal to the model: logits differ by",
        ),
        ({"codec": CharCodec(vocabulary="ab")}, gptkit.GptkitError, "2 items for 19 token ids"),
        ({"dataset": lambda run: {"use": "char-texts"}}, gptkit.RecipeError, "char-texts"),
    ],
)
def test_what_does_not_fit_leaves_nothing(
    folder: Path, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        run_import(imported(**changes))
    assert not (folder / "r").exists()


def test_a_place_that_is_taken_stays_as_it_is(folder: Path) -> None:
    (folder / "r").mkdir()
    (folder / "r" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="r: already exists"):
        run_import(imported())
    assert [path.name for path in (folder / "r").iterdir()] == ["mine.txt"]


def test_what_no_format_reads_is_told(cli: Command, folder: Path) -> None:
    result = cli("import", "nothing.here")
    assert result.exit_code == 2
    assert "nothing.here: no such file or folder, and no installed" in result.stderr
    result = cli("import", "text.txt")
    assert "text.txt: no installed format reads this" in result.stderr
    run_import(imported())
    result = cli("import", "r")
    assert "r: is a run of gptkit, not a model of another program" in result.stderr
    Path("model.gguf").write_text("x")
    result = cli("sample", "r/..", "--tokens", 1)
    assert (result.exit_code, "gptkit import" in result.stderr) == (2, False)
    result = cli("eval", "model.gguf")
    assert "hint:  a model of another program becomes a run by: gptkit import" in result.stderr
    result = cli("import", "text.txt", "--format", "onnx")
    assert (result.exit_code, "text.txt: this format is only written" in result.stderr) == (2, True)


def test_logits_are_equal_but_for_rounding() -> None:
    wanted = np.array([[1.0, -2.0], [0.5, 0.25]], np.float32)
    assert compare_logits("a", wanted, wanted + 1e-4, hint="h") == pytest.approx(5e-5, rel=0.01)
    for found in (wanted + 1e-3, wanted * np.nan, wanted * np.inf):
        with pytest.raises(ExportError, match="a: is not equal to the model: logits differ by"):
            compare_logits("a", wanted, found, hint="h")
    with pytest.raises(ExportError, match=r"a: computes logits \[1, 2\], not \[2, 2\]"):
        compare_logits("a", wanted, wanted[:1], hint="h")
    assert compare_logits("a", wanted, wanted + 1e-3, hint="h", tolerance=1e-3) < 1e-3


# [model] init


RECIPE = {
    "dataset": {"use": "char-text", "path": "text.txt", "block_size": 8},
    "train": {"steps": 1, "batch_size": 2, "eval_batches": 1, "device": "cpu",
              "optimizer": {"use": "adamw", "learning_rate": 1e-30}},
}  # fmt: skip


def begun(model: dict[str, Any], **changes: Any) -> Path:
    return gptkit.train(RECIPE | {"model": model} | changes, out="b", quiet=True).path


def test_sizes_and_parts_come_from_a_run(folder: Path) -> None:
    run = run_import(imported())
    path = begun({"init": "r", "dropout": 0.5})
    before, after = gptkit.load(run.path), gptkit.load(path)
    np.testing.assert_allclose(after.logits(np.arange(8)), before.logits(np.arange(8)), atol=1e-6)
    recipe = tomllib.loads((path / "recipe.toml").read_text())
    assert recipe["model"]["n_embd"] == 16
    assert recipe["model"]["position"] == "rotary"
    assert (recipe["model"]["init"], recipe["model"]["dropout"]) == ("r", 0.5)
    shutil.rmtree("r")  # it is not needed any more
    gptkit.resume(path, {"train.steps": 2}, quiet=True)


def test_a_contradiction_is_an_error_by_field(folder: Path) -> None:
    run_import(imported())
    with pytest.raises(UsageError) as caught:
        begun({"init": "r", "n_embd": 32, "n_layer": 2, "norm": "rmsnorm"})
    assert str(caught.value).splitlines() == [
        "model.init r: its n_embd is 16, the recipe's 32",
        "model.init r: its norm is 'layernorm', the recipe's 'rmsnorm'",
    ]
    with pytest.raises(UsageError, match=r"--from r: the recipe has model\.init r, too"):
        gptkit.train(RECIPE | {"model": {"init": "r"}}, start="r", out="b", quiet=True)
    with pytest.raises(UsageError, match="nowhere: no such file or folder, and no installed"):
        begun({"init": "nowhere"})
    assert not Path("b").exists()


@pytest.mark.parametrize("tokens", [N, N + 1])
@pytest.mark.parametrize("lora", [{}, {"lora": {"rank": 2}}])
def test_a_model_that_computes_something_else_than_its_source_is_not_trained(
    tokens: int, lora: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEXT + "~" * 40 * (tokens - N) + TEXT
    Path("text.txt").write_text(text)
    wrong = imported()
    scaled = {name: tensor * 1.01 for name, tensor in wrong.weights.items()}
    for model, fault in ((imported(), None), (imported(weights=scaled), "logits differ by")):
        format_ = Memory.of(model)
        monkeypatch.setattr(formats, "find_reader", lambda source: None)
        monkeypatch.setattr(formats, "make", lambda entry, options, made=format_: made)
        if fault:
            with pytest.raises(ExportError, match=f"model.init a.none: is not.*{fault}"):
                begun({"init": "a.none"}, **lora)
            assert not Path("b").exists()
        else:
            shutil.rmtree(begun({"init": "a.none"}, **lora))


def test_the_vocabulary_may_grow_and_the_context_shrink(folder: Path) -> None:
    run = begun({"position": "learned", "n_layer": 1, "n_embd": 16, "n_head": 2,
                 "tie_embeddings": False}).rename("r")  # fmt: skip
    Path("text.txt").write_text(TEXT + "~" * 40 + TEXT)
    dataset = RECIPE["dataset"] | {"block_size": 6}
    grown = begun({"init": "r"}, dataset=dataset)
    old, new = (load_file(p / "checkpoints/last/model.safetensors") for p in (run, grown))
    for name in ("wte.weight", "lm_head.weight"):
        assert torch.equal(new[name][:N], old[name])
        torch.testing.assert_close(new[name][N], old[name].mean(0))
    assert torch.equal(new["position.wpe.weight"], old["position.wpe.weight"][:6])
    Path("text.txt").write_text(TEXT + " !" * 40 + TEXT)
    with pytest.raises(UsageError, match=r"model\.init r: its codec \(char\)\.vocabulary"):
        shutil.rmtree("b")
        begun({"init": "r"})
