"""What draws from a checkpoint: onnxruntime on a CPU, with the same tokens as torch."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import Result

import gptkit
from gptkit.engine import CheckpointModel, load_model
from gptkit.errors import DivergedError, ModelFileError, UsageError
from gptkit.model.gpt import GPT
from gptkit.onnx.runtime import decoder
from gptkit.onnx.runtime.decoder import OnnxDecoder, WeightsSession
from gptkit.recipe.options import GPTConfig
from gptkit.runs.loaded import LoadedModel, load_checkpoint
from gptkit.sampling import threads
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.samples import SampleRequest
from gptkit.sampling.torch_decoder import TorchDecoder
from gptkit.testing import LetterCodec
from gptkit.training import preview
from tests.support import LLAMA3, execute, names_of, options_of, pairwise, stir, train

DATA = Path(__file__).parent / "data/v0.1"
CHOICES = pairwise(
    **{name: names_of(name) for name in ("norm", "position", "mlp")},
    **dict.fromkeys(("embed_norm", "bias", "tie_embeddings"), (False, True)),
    n_kv_head=(1, 2, 4),
    qk_norms=({}, {"qk_norm": True}, {"qk_norm": True, "qk_norm_scale": True}),
    head_dim=(None, 16),
    qkv_bias=(None, True, False),
    norm_eps=(1e-5, 0.1),
    rope=({}, {"rope_theta": 50.0}, {"position": "rotary", "rope_scaling": LLAMA3}),
    logit_softcap=(None, 5.0),
)
TELL_MODULES = """
import atexit, sys
from gptkit.cli.app import main
atexit.register(lambda: print("torch imported:", "torch" in sys.modules, file=sys.stderr))
main()
"""


def gpt(seed: int, **shape: Any) -> GPT:
    """A model all of whose weights matter."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 11, "block_size": 12, "n_layer": 2, "n_head": 4, "n_embd": 32}
    model = GPT(GPTConfig(**sizes | shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def session_of(model: GPT) -> WeightsSession:
    arrays = {name: tensor.detach().numpy() for name, tensor in model.weights().items()}
    return WeightsSession(model.config, arrays, "a checkpoint")


@pytest.mark.parametrize("shape", CHOICES, ids=str)
def test_onnxruntime_gives_the_logits_of_torch(shape: dict[str, Any]) -> None:
    """Prompts and tokens in turns, until the cache is full and from its beginning again."""
    for seed in (1, 2):  # the second model uses the graph that was kept of the first
        model, rng = gpt(seed, **options_of(shape)), np.random.default_rng(seed)
        found, expected = OnnxDecoder(session_of(model), 3), TorchDecoder(model, 3)
        for length in (5, 1, 12):
            ids = rng.integers(0, 11, (3, length))
            np.testing.assert_allclose(found.prefill(ids), expected.prefill(ids), atol=2e-5)
            while found.length < 12:
                ids = rng.integers(0, 11, (3, 1))
                np.testing.assert_allclose(found.step(ids), expected.step(ids), atol=2e-5)
                assert found.length == expected.length


def test_the_command_draws_the_tokens_of_torch_without_it(
    cli: Callable[..., Result], tmp_path: Path
) -> None:
    options = ["--prompt", "thou", "--tokens", 80, "-n", 2, "--seed", 3]
    by_torch = cli("sample", DATA / "text", *options, "--engine", "torch")
    command = [sys.executable, "-c", TELL_MODULES, "sample", DATA / "text", *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    assert done.stdout == by_torch.stdout
    assert done.stderr == (
        "running on onnxruntime: faster than torch on a CPU\ntorch imported: False\n"
    )
    assert by_torch.stderr == ""


def test_many_requests_are_drawn_together_as_each_alone() -> None:
    by_onnx, by_torch = (gptkit.load(DATA / "text", engine=engine) for engine in ("onnx", "torch"))
    requests = [SampleRequest(text, tokens=50) for text in ("thou", "t", "shall i", "")]
    sampling = SamplingOptions(temperature=0.9)
    drawn = by_onnx.draw_each(requests, sampling, [1, 2, 3, 4]).token_ids()
    assert drawn == by_torch.draw_each(requests, sampling, [1, 2, 3, 4]).token_ids()
    alone = by_onnx.draw(requests[1], replace(sampling, seed=2)).token_ids()
    assert drawn[1] == alone[0]


def test_whoever_changes_the_module_draws_from_it() -> None:
    model, by_torch = (gptkit.load(DATA / "text", engine=engine) for engine in ("onnx", "torch"))
    unchanged = model.sample(tokens=40)
    assert unchanged == by_torch.sample(tokens=40)
    for each in (model, by_torch):
        assert isinstance(each, CheckpointModel | LoadedModel)
        with torch.no_grad():
            each.model.wte.weight.mul_(-1)
    assert model.sample(tokens=40) == by_torch.sample(tokens=40) != unchanged
    assert gptkit.load(DATA / "text", engine="onnx").sample(tokens=40) == unchanged


def test_torch_draws_what_onnxruntime_cannot(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Shall I compare thee\n" * 20)
    dataset = {"use": "char-text", "path": str(tmp_path / "a.txt"), "block_size": 8}
    run = train(tmp_path, dataset, {"n_layer": 1, "n_head": 2, "n_embd": 12})
    model, reason = load_model(run, checkpoint="last", weights=None, device="cpu", engine="auto")
    assert model.provider is None
    assert reason == "torch: heads of 6 numbers, and not of a multiple of 8"
    with pytest.raises(UsageError, match="engine onnx: heads of 6 numbers") as caught:
        gptkit.load(run, device="cpu", engine="onnx")
    assert caught.value.hint == "--engine torch, or --engine auto"
    with pytest.raises(UsageError, match='engine onnx: device "mps" is not the CPU'):
        gptkit.load(DATA / "text", device="mps", engine="onnx")
    for path in (DATA / "text", DATA / "text.onnx"):
        with pytest.raises(UsageError, match='no engine named "tensorrt"'):
            gptkit.load(path, engine="tensorrt")


def test_a_graph_that_is_damaged_or_cannot_be_kept_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = gpt(1), np.array([[1, 2, 3]])
    monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path))
    expected = OnnxDecoder(session_of(model), 1).prefill(ids)
    (kept,) = (tmp_path / "graphs").iterdir()
    whole = kept.read_bytes()
    epsilon = np.float32(1e-5).tobytes()  # of the norms: still a graph, but another one
    for damaged in (whole[:500], whole.replace(epsilon, np.float32(0.5).tobytes()), b""):
        assert damaged != whole
        kept.write_bytes(damaged)
        np.testing.assert_array_equal(OnnxDecoder(session_of(model), 1).prefill(ids), expected)
        assert kept.read_bytes() == whole
    kept.unlink()
    os.mkfifo(kept)  # not read: nobody may ever write to it
    np.testing.assert_array_equal(OnnxDecoder(session_of(model), 1).prefill(ids), expected)
    monkeypatch.setenv("GPTKIT_CACHE", os.devnull)
    np.testing.assert_array_equal(OnnxDecoder(session_of(model), 1).prefill(ids), expected)


def test_only_the_newest_graphs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(decoder, "KEPT", 2)
    found: list[Path] = []
    for n_layer in (1, 2, 3):
        session_of(gpt(1, n_layer=n_layer))
        (new,) = set((tmp_path / "graphs").iterdir()) - set(found)
        os.utime(new, (n_layer, n_layer))
        found.append(new)
    assert set((tmp_path / "graphs").iterdir()) == set(found[1:])


@pytest.mark.parametrize(
    ("scale", "fault"), [(float("nan"), "a weight"), (3e38, "a weight"), (1e30, "the loss")]
)
def test_what_is_not_finite_is_refused_as_by_torch(
    scale: float, fault: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("Shall I compare thee\n" * 20)
    dataset = {"use": "char-text", "path": str(tmp_path / "a.txt"), "block_size": 8}
    run = stir(train(tmp_path, dataset, {"n_layer": 1, "n_head": 2, "n_embd": 16}), scale=scale)
    said = []
    for load in (load_checkpoint, gptkit.load):
        with pytest.raises(DivergedError, match=f": {fault} is not finite$") as caught:
            load(run, device="cpu")
        said.append((str(caught.value), caught.value.hint))
    assert said[0] == said[1]


def test_a_small_model_is_drawn_by_one_thread_unless_the_user_says_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, large = gpt(1), gpt(1, n_embd=512, n_layer=4)
    monkeypatch.setattr(threads, "_allowed", lambda: None)
    seen: list[int] = []
    for model in (small, large):
        model.ln_f.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    for said, expected in ((None, [1, 3]), ("2", [2, 2]), ("1" * 11, [1, 3])):
        if said is None:
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        else:
            monkeypatch.setenv("OMP_NUM_THREADS", said)
        seen.clear()
        torch.set_num_threads(3)
        for model in (small, large):
            TorchDecoder(model, 1).step(np.array([[1]]))
        left, _ = torch.get_num_threads(), torch.set_num_threads(before)
        assert (seen, left) == (expected, 3)
        sessions = [session_of(model).session for model in (small, large)]
        counts = [session.get_session_options().intra_op_num_threads for session in sessions]
        assert counts == [0 if count == 3 else count for count in expected]  # 0: onnxruntime's own


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process has all cores")
def test_a_process_with_fewer_cores_has_as_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    program = """
import os
from gptkit.sampling.threads import SMALL, for_drawing
cores = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, cores[:1])
print(for_drawing(SMALL), for_drawing(SMALL - 1), os.cpu_count())
"""
    restricted, small, there = execute(sys.executable, "-c", program).split()
    assert (restricted, small) == ("None" if there == "1" else "1", "1")


def test_a_decoder_that_still_draws_does_not_come_back_with_the_weights_before() -> None:
    model, expected = (gptkit.load(DATA / "text", engine="onnx") for _ in range(2))
    assert isinstance(model, CheckpointModel)
    request, sampling = SampleRequest("a", tokens=40), SamplingOptions(seed=1)
    begun = model.draw(request, sampling)
    next(begun.steps)
    with torch.no_grad():
        model.model.wte.weight.mul_(-1)
    for _ in begun.steps:
        pass
    assert begun.token_ids() == expected.draw(request, sampling).token_ids()
    assert model.draw(request, sampling).token_ids() != begun.token_ids()


def test_torch_draws_where_a_graph_fails_when_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: OnnxDecoder, tokens: object) -> None:
        raise ModelFileError("a graph: onnxruntime cannot run it: no such kernel")

    expected = preview.previewer(gpt(2, vocab_size=26), LetterCodec())(100, 5)
    monkeypatch.setattr(OnnxDecoder, "prefill", fail)
    model, reason = load_model(
        DATA / "text", checkpoint="last", weights=None, device="cpu", engine="auto"
    )
    assert model.provider is None
    assert reason == "torch: a graph: onnxruntime cannot run it: no such kernel"
    assert preview.previewer(gpt(2, vocab_size=26), LetterCodec())(100, 5) == expected


def test_a_preview_is_drawn_by_onnxruntime_from_the_weights_as_they_are_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, made = gpt(1, vocab_size=26).train(), list[int]()

    def count(model: GPT, batch_size: int) -> TorchDecoder:
        made.append(batch_size)
        return TorchDecoder(model, batch_size)

    monkeypatch.setattr(preview, "TorchDecoder", count)
    texts = []
    for enough in (0, preview.ENOUGH, 1000):
        monkeypatch.setattr(preview, "ENOUGH", enough)
        texts.append([])
        for weights in (gpt(2, vocab_size=26), gpt(3, vocab_size=26)):
            model.load_weights(weights.weights())
            texts[-1].append(preview.previewer(model, LetterCodec())(100, 5))
    assert texts[0] == texts[1] == texts[2]
    assert texts[0][0] != texts[0][1]
    assert made == [1, 1]  # where 1000 tokens were needed
    assert model.training
