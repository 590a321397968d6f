"""`gptkit.load`: one call for checkpoints and exported models."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import Result

import gptkit
from gptkit.errors import ModelFileError, UsageError
from gptkit.model.gpt import GPT
from gptkit.onnx.graphs.text import text_model
from gptkit.runs import loaded
from gptkit.runs.loaded import LoadedModel
from gptkit.sampling.model import Model
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.samples import SampleRequest
from gptkit.sampling.torch_decoder import TorchDecoder

DATA = Path(__file__).parent / "data/v0.1"
REQUEST = SampleRequest("thou", tokens=40, samples=2)
LONG = "thou art more lovely and more temperate; rough winds do shake the darling buds of may\n" * 2


def test_a_checkpoint_and_its_exported_file_are_used_alike(
    cli: Callable[..., Result], tmp_path: Path
) -> None:
    assert cli("export", DATA / "text", "--out", "text.onnx").exit_code == 0
    sampling = SamplingOptions(temperature=0.8, top_k=9, seed=3)
    drawn = [
        gptkit.load(path, device="cpu").draw(REQUEST, sampling).token_ids()
        for path in (DATA / "text", str(tmp_path / "text.onnx"))
    ]
    assert drawn[0] == drawn[1]
    options = "--prompt thou --tokens 40 --samples 2 --top-k 9 --seed 3 --ids"
    said = cli("sample", DATA / "text", *options.split()).stdout
    assert [list(map(int, line.split())) for line in said.splitlines()] == drawn[0]


def test_models_tell_their_codec_temperature_and_provider() -> None:
    checkpoint, exported = gptkit.load(DATA / "text"), gptkit.load(DATA / "text.onnx", device="cpu")
    assert checkpoint.codec == exported.codec
    assert checkpoint.temperature == exported.temperature == 0.8
    assert (checkpoint.provider, exported.provider) == ("CPUExecutionProvider",) * 2
    assert gptkit.load(DATA / "text", engine="torch").provider is None


def test_exported_models_draw_and_measure_without_torch() -> None:
    program = f"""
import sys, gptkit
model = gptkit.load({str(DATA / "text.onnx")!r}, device="cpu")
model.sample("thou", tokens=3), model.logprobs("thou"), model.embed("thou")
print("torch" in sys.modules)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# One Model, four kinds: a run in torch and in onnxruntime, a file, a bundle.


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """A trained model of text in every kind; `block_size` is 32."""
    folder, run = tmp_path_factory.mktemp("models"), gptkit.Run(DATA / "text")
    files = {
        "file": run.export(folder / "text.onnx"),
        "bundle": run.export(folder / "bundle"),
        "half": run.export(folder / "half.onnx", dtype="float16"),
    }
    return {
        "run": run.load(device="cpu", engine="torch"),
        "onnx": run.load(device="cpu", engine="onnx"),
        **{kind: gptkit.load(path, device="cpu") for kind, path in files.items()},
    }


KINDS = ("run", "onnx", "file", "bundle")


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_that_of_the_command(
    kind: str, models: dict[str, Model], cli: Callable[..., Result]
) -> None:
    model, options = models[kind], {"tokens": 50, "seed": 3, "top_k": 9, "temperature": 0.7}
    said = cli(
        "sample", DATA / "text", "--prompt", "thou", "--tokens", 50, "--seed", 3, "--top-k", 9,
        "--temperature", 0.7,
    )  # fmt: skip
    assert model.sample("thou", **options) + "\n" == said.stdout
    pieces = list(model.stream("thou", **options))
    assert ("".join(pieces) + "\n", len(pieces)) == (said.stdout, 51)
    several = model.sample("thou", samples=2, **options)
    assert [text[:4] for text in several] == ["thou", "thou"]
    assert several[0] != several[1]
    assert several == models["run"].sample("thou", samples=2, **options)
    stop = several[0][20:22]
    for end in (stop, [stop]):
        stopped = model.sample("thou", samples=2, stop=end, **options)
        assert stopped[0] == several[0].split(stop)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_draws_several_texts_in_turns_and_keeps_what_draws(
    kind: str, models: dict[str, Model]
) -> None:
    model = models[kind]
    alone = [model.sample("thou", tokens=40, seed=seed) for seed in (1, 2)]
    model.sample("thou", tokens=100, seed=3, top_k=2)
    next(model.stream("thou", tokens=40))  # given up
    turns = zip(*(model.stream("thou", tokens=40, seed=seed) for seed in (1, 2)), strict=True)
    assert ["".join(pieces) for pieces in zip(*turns, strict=True)] == alone


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_are_streamed_after_ids_are_those_of_the_text(
    kind: str, models: dict[str, Model]
) -> None:
    model, options = models[kind], {"tokens": 50, "seed": 3, "top_k": 9, "temperature": 0.7}
    ids = model.codec.encode("thou")
    drawn = list(model.stream_tokens(ids, **options))
    assert len(drawn) == 50
    assert model.codec.decode([*ids, *drawn]).decode() == model.sample("thou", **options)
    long = model.codec.encode(LONG)
    cut = list(model.stream_tokens(long[-model.block_size :], tokens=5))
    assert list(model.stream_tokens(long, tokens=5)) == cut
    assert model.vocab_size == 59
    for wrong in ([], [59], [-1], ["a"], [0.5], [[1]]):
        with pytest.raises(UsageError, match="should be"):
            model.stream_tokens(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_token_ends_streamed_tokens(kind: str, models: dict[str, Model]) -> None:
    model = models[kind]
    ids, stop = model.codec.encode("thou"), model.codec.encode(" ")[0]
    whole = list(model.stream_tokens(ids, tokens=50, seed=3))
    ended = whole[: whole.index(stop)]
    assert list(model.stream_tokens(ids, tokens=50, seed=3, stop_tokens=[stop])) == ended
    if kind == "run":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model.codec), "stop_tokens", (stop,))
            assert list(model.stream_tokens(ids, tokens=50, seed=3)) == ended
            assert list(model.stream_tokens(ids, tokens=50, seed=3, stop_tokens=())) == whole


def test_a_decoder_is_kept_for_the_next_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def count(model: GPT, batch_size: int) -> TorchDecoder:
        made.append(batch_size)
        return TorchDecoder(model, batch_size)

    monkeypatch.setattr(loaded, "make_decoder", count)
    model = gptkit.load(DATA / "text", device="cpu", engine="torch")
    for samples in (None, 3, 1, 3, None):
        model.sample(tokens=2, samples=samples)
    assert made == [1, 3]


@pytest.mark.parametrize("kind", [*KINDS, "half"])
def test_all_kinds_of_a_model_measure_a_text_alike(kind: str, models: dict[str, Model]) -> None:
    expected, model = models["run"], models[kind]
    limit = 0.02 if kind == "half" else 1e-5
    for text in ("t", "thou", LONG[:33], LONG[:34], LONG):
        logprobs, vector = model.logprobs(text), model.embed(text)
        assert (logprobs.dtype, logprobs.shape) == (np.float32, (len(text) - 1,))
        assert (vector.dtype, vector.shape) == (np.float32, (32,))
        np.testing.assert_allclose(logprobs, expected.logprobs(text), atol=limit)
        np.testing.assert_allclose(vector, expected.embed(text), atol=limit)


def test_log_probabilities_are_those_of_the_loss_and_embeddings_those_of_the_features(
    models: dict[str, Model],
) -> None:
    model, text = models["run"], LONG[:33]
    assert isinstance(model, LoadedModel)
    tokens = torch.tensor([model.codec.encode(text)])
    with torch.no_grad():
        loss = model.model(tokens[:, :-1], tokens[:, 1:])
        features = model.model.features(tokens[:, :-1])[0].mean(dim=0)
    assert -model.logprobs(text).mean() == pytest.approx(float(loss), abs=1e-6)
    np.testing.assert_allclose(model.embed(text[:-1]), features.numpy(), atol=1e-6)


def test_log_probabilities_of_a_long_text_are_those_by_which_it_is_drawn(
    models: dict[str, Model],
) -> None:
    """By the rule of `gptkit.sampling.generate`: a full cache restarts with half of its tokens."""
    model = models["run"]
    assert isinstance(model, LoadedModel)
    decoder, tokens = TorchDecoder(model.model, 1), np.array([model.codec.encode(LONG)])
    found, logits = [], decoder.prefill(tokens[:, :1])
    for i in range(1, tokens.shape[1]):
        found.append(float(logits[0, tokens[0, i]] - np.log(np.exp(logits[0]).sum())))
        if decoder.length == decoder.block_size:
            logits = decoder.prefill(tokens[:, i + 1 - decoder.block_size // 2 : i + 1])
        else:
            logits = decoder.step(tokens[:, i : i + 1])
    np.testing.assert_allclose(model.logprobs(LONG), found, atol=1e-5)


def test_pictures_are_bytes_and_cannot_be_streamed() -> None:
    model = gptkit.load(DATA / "pixels", device="cpu")
    one, several = model.sample(seed=1), model.sample(seed=1, samples=2)
    assert isinstance(one, bytes) and one.startswith(b"\x89PNG")
    assert len(several) == 2 and all(isinstance(picture, bytes) for picture in several)
    with pytest.raises(UsageError, match=r"samples are \.png files, which cannot be streamed"):
        model.stream()


def test_what_cannot_be_drawn_is_told(models: dict[str, Model]) -> None:
    model = models["file"]
    for options, said in (
        ({"tokens": 0}, "tokens should be 1 or more, got 0"),
        ({"tokens": 2**63}, "tokens should be at most 2,147,483,647"),
        ({"samples": 0}, "samples should be 1 or more, got 0"),
        ({"top_p": 2.0}, "top_p should be above 0 and at most 1"),
        ({"stop": [""]}, "a stop text should not be empty"),
        ({"prompt": "€"}, "the model never saw"),
    ):
        with pytest.raises(UsageError, match=said):
            model.sample(**options)
    with pytest.raises(UsageError, match="the model never saw"):
        model.logprobs("€")


def test_a_foreign_graph_is_refused(tmp_path: Path) -> None:
    graph = onnx.load(DATA / "text.onnx")
    (token,) = (a.g for n in graph.graph.node for a in n.attribute if a.name == "body")
    del token.node[:]
    with pytest.raises(ModelFileError, match=r"text\.onnx: its graph is not built as"):
        text_model(graph, DATA / "text.onnx")


def test_what_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such run folder"):
        gptkit.load(tmp_path / "nothing")
    with pytest.raises(UsageError, match="has no checkpoints to choose from"):
        gptkit.load(DATA / "text.onnx", checkpoint="best")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UsageError, match="not a run folder or a bundle"):
        gptkit.load(tmp_path)
    with pytest.raises(AttributeError, match="'gptkit' has no attribute 'lode'"):
        gptkit.lode  # noqa: B018
