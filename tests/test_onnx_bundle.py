"""A bundle: small graphs that share one weight file, and what other programs need."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from gptkit.codec import TextCodec
from gptkit.onnx.export.export import export
from gptkit.onnx.export.foreign_configs import tokenizer
from gptkit.onnx.runtime import decode_session
from gptkit.onnx.runtime.decode_session import DecodeSession
from gptkit.onnx.runtime.model import load_exported
from gptkit.runs.loaded import LoadedModel, load_checkpoint
from gptkit.sampling.generate import generate
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.samples import SampleRequest
from gptkit.sampling.torch_decoder import TorchDecoder
from tests.support import execute, stir, train

Array = NDArray[Any]

FOREIGN = "Über Straße, naïve façade — “日本語” Жизнь 🙂 ñ\t…\n"
SHAPE = {
    "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "norm": "rmsnorm",
    "position": "rotary", "mlp": "swiglu", "qk_norm": True, "bias": False,
}  # fmt: skip
GRAPHS = ("generate.onnx", "model.onnx", "decode.onnx")


DATASETS: dict[str, dict[str, Any]] = {
    "ascii": {"use": "char-text", "block_size": 24},
    "foreign": {"use": "char-text", "path": "foreign.txt", "block_size": 24},
    "pixels": {"use": "cifar10", "source": "shapes", "size": 4, "colors": 8},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """By data set, a folder with the run "r" and its "bundle"; no test changes them."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, dataset in DATASETS.items():
            found[name] = tmp_path_factory.mktemp(name)
            patch.chdir(found[name])
            Path("foreign.txt").write_text(FOREIGN * 40, encoding="utf-8")
            path = stir(train(found[name], dataset, SHAPE), scale=0.2)
            export(path, out=found[name] / "bundle")
    yield found


@pytest.fixture
def bundle(folders: dict[str, Path]) -> Path:
    return folders["ascii"] / "bundle"


@pytest.fixture
def trained(folders: dict[str, Path]) -> LoadedModel:
    return load_checkpoint(folders["ascii"] / "r", device="cpu")


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def torch_tokens(
    trained: LoadedModel, prompts: Array, count: int, sampling: SamplingOptions
) -> Array:
    """What `gptkit sample` draws from the checkpoint, (B, count)."""
    rows = len(prompts)
    drawn = generate(
        TorchDecoder(trained.model, rows), prompts.tolist(), tokens=count, sampling=sampling,
        samples=rows,
    )  # fmt: skip
    return np.stack(list(drawn), axis=1)


# The files.


def test_graphs_are_small_and_weights_are_there_once(bundle: Path, trained: LoadedModel) -> None:
    held = load_file(bundle / "model.safetensors")
    weights = trained.model.weights()
    assert set(held) == set(weights)
    for name, tensor in weights.items():
        np.testing.assert_array_equal(held[name], tensor.detach().numpy())
    for name in GRAPHS:
        assert (bundle / name).stat().st_size < 200_000
        onnx.checker.check_model(bundle / name)  # with the weights, which lie beside it
        proto = onnx.load(bundle / name, load_external_data=False)
        used = {x.name: x for x in external(proto.graph)}
        assert set(used) == set(weights)
        for tensor in used.values():
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert entries["location"] == "model.safetensors"
            assert int(entries["length"]) == 4 * np.prod(tensor.dims, dtype=int)


def external(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Tensors whose data is in another file, in this graph and those inside it."""
    found = [x for x in graph.initializer if x.data_location == onnx.TensorProto.EXTERNAL]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += external(attribute.g)
    return found


def test_quantised_weights_are_there_once(folders: dict[str, Path], tmp_path: Path) -> None:
    sizes = {"float32": (folders["ascii"] / "bundle" / "model.safetensors").stat().st_size}
    for dtype in ("float16", "int8", "int4"):
        path = export(folders["ascii"] / "r", out=tmp_path / dtype, dtype=dtype).path
        assert all((path / name).stat().st_size < 200_000 for name in GRAPHS)
        sizes[dtype] = (path / "model.safetensors").stat().st_size
    ratios = {dtype: sizes["float32"] / size for dtype, size in sizes.items()}
    assert ratios["float16"] > 1.8
    assert ratios["int8"] > 2.8  # names and norms weigh much in a model this small
    assert ratios["int4"] > 4


def test_every_file_of_a_bundle_of_images(folders: dict[str, Path]) -> None:
    assert {path.name for path in (folders["pixels"] / "bundle").iterdir()} == {
        *GRAPHS, "model.safetensors", "config.json", "genai_config.json", "selftest.json",
        "README.md",
    }  # fmt: skip


def test_the_step_graph_has_transformers_names(bundle: Path) -> None:
    graph = session(bundle / "model.onnx")
    past = ["batch_size", 2, "past_sequence_length", 8]
    caches = [f"{i}.{kind}" for i in range(2) for kind in ("key", "value")]
    assert {x.name: (x.type, x.shape) for x in graph.get_inputs()} == {
        "input_ids": ("tensor(int64)", ["batch_size", "sequence_length"]),
        "attention_mask": ("tensor(int64)", ["batch_size", "total_sequence_length"]),
        "position_ids": ("tensor(int64)", ["batch_size", "sequence_length"]),
        **{f"past_key_values.{x}": ("tensor(float)", past) for x in caches},
    }
    vocab_size = json.loads((bundle / "config.json").read_text())["vocab_size"]
    outputs = {x.name: (x.type, x.shape) for x in graph.get_outputs()}
    assert outputs.pop("logits") == (
        "tensor(float)", ["batch_size", "sequence_length", vocab_size]
    )  # fmt: skip
    assert set(outputs) == {f"present.{x}" for x in caches}
    for kind, shape in outputs.values():
        assert (kind, shape[0], shape[1], shape[3]) == ("tensor(float)", "batch_size", 2, 8)


def test_the_generate_graph_says_what_it_takes(bundle: Path) -> None:
    graph = session(bundle / "generate.onnx")
    assert [(x.name, x.type, x.shape) for x in graph.get_inputs()] == [
        ("prompt_ids", "tensor(int64)", ["batch", "prompt"]),
        ("max_new_tokens", "tensor(int64)", []), ("temperature", "tensor(float)", []),
        ("top_k", "tensor(int64)", []), ("top_p", "tensor(float)", []),
        ("seed", "tensor(int64)", []), ("stop_tokens", "tensor(int64)", ["stops"]),
    ]  # fmt: skip
    (tokens,) = graph.get_outputs()
    assert (tokens.name, tokens.type, tokens.shape) == (
        "tokens", "tensor(int64)", ["batch", "generated"]
    )  # fmt: skip


@pytest.mark.parametrize(("name", "temperature"), [("ascii", 0.8), ("pixels", 1.0)])
def test_genai_draws_at_the_models_own_temperature(
    name: str, temperature: float, folders: dict[str, Path]
) -> None:
    config = json.loads((folders[name] / "bundle" / "genai_config.json").read_text())
    assert config["search"]["temperature"] == temperature


def test_configs_tell_the_sizes(bundle: Path, trained: LoadedModel) -> None:
    config, shape = json.loads((bundle / "config.json").read_text()), trained.model.config
    expected = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 24,
        "vocab_size": shape.vocab_size, "intermediate_size": shape.inner_size,
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    assert config["gptkit"] == shape.model_dump(mode="json")
    assert "eos_token_id" not in config  # this data has no end
    for name in ("tokenizer.json", "tokenizer_config.json", "genai_config.json", "selftest.json"):
        assert isinstance(json.loads((bundle / name).read_text(encoding="utf-8")), dict)
    page = (bundle / "README.md").read_text(encoding="utf-8")
    assert "$" not in page.replace("$ ", ""), "a value was not filled in"
    assert "char-text" in page


# The same tokens.


@pytest.mark.parametrize("name", ["ascii", "foreign", "pixels"])
def test_the_selftest_holds_in_a_fresh_session(name: str, folders: dict[str, Path]) -> None:
    folder = folders[name]
    code = """
import json, sys
import numpy as np, onnxruntime as ort
test = json.load(open("selftest.json"))
session = ort.InferenceSession(test["graph"], providers=["CPUExecutionProvider"])
types = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
for case in test["cases"]:
    inputs = {x.name: np.array(case[x.name], types[x.type]) for x in session.get_inputs()}
    assert session.run(["tokens"], inputs)[0].tolist() == case["tokens"], case
print(len(test["cases"]), "gptkit" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder / "bundle",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "3 False\n"
    trained = load_checkpoint(folder / "r", device="cpu")
    for case in json.loads((folder / "bundle" / "selftest.json").read_text())["cases"]:
        sampling = SamplingOptions(
            temperature=case["temperature"], top_k=case["top_k"], top_p=case["top_p"],
            seed=case["seed"],
        )  # fmt: skip
        prompts = np.array(case["prompt_ids"])
        drawn = torch_tokens(trained, prompts, case["max_new_tokens"], sampling)
        assert drawn.tolist() == case["tokens"]


@pytest.mark.parametrize(
    ("rows", "length", "chunk"), [(1, 1, 1), (3, 5, 7), (2, 24, 100), (1, 40, 7), (1, 24, 1)]
)
def test_decode_draws_what_generate_draws(
    rows: int, length: int, chunk: int, bundle: Path, trained: LoadedModel
) -> None:
    vocab_size = trained.model.config.vocab_size
    prompts = np.random.default_rng(length).integers(0, vocab_size, (rows, length))
    steps = DecodeSession(bundle, "cpu")
    for sampling in (SamplingOptions(seed=4), SamplingOptions(top_k=9, top_p=0.9, seed=5)):
        drawn = list(steps.stream(prompts, 70, sampling, chunk=chunk))
        assert max(part.shape[1] for part in drawn) <= chunk
        tokens = np.concatenate(drawn, axis=1)
        assert tokens.tolist() == torch_tokens(trained, prompts, 70, sampling).tolist()


@pytest.mark.parametrize("room", [1, 5, 24, 30])
def test_a_long_drawing_needs_little_room(
    room: int, bundle: Path, trained: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_session, "MAX_TABLE", room)
    prompts = np.array([[1, 2, 3], [4, 5, 6]])
    expected = torch_tokens(trained, prompts, 70, SamplingOptions(seed=6)).tolist()
    for chunk in (1, 7, 100):
        drawn = list(
            DecodeSession(bundle, "cpu").stream(prompts, 70, SamplingOptions(seed=6), chunk=chunk)
        )
        assert np.concatenate(drawn, axis=1).tolist() == expected
        assert max(part.shape[1] for part in drawn) <= min(room, chunk)


def test_two_drawings_at_once_do_not_meet(bundle: Path, trained: LoadedModel) -> None:
    steps, prompts = DecodeSession(bundle, "cpu"), np.array([[1, 2, 3]])
    streams = [steps.stream(prompts, 40, SamplingOptions(seed=seed)) for seed in (1, 2)]
    turns = list(zip(*streams, strict=True))
    for i, seed in enumerate((1, 2)):
        tokens = np.concatenate([turn[i] for turn in turns], axis=1)
        assert (
            tokens.tolist()
            == torch_tokens(trained, prompts, 40, SamplingOptions(seed=seed)).tolist()
        )


def test_a_drawing_uses_the_buffers_of_an_earlier_one(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Counted(decode_session._Steps):
        def __init__(self, owner: DecodeSession, rows: int) -> None:
            made.append(rows)
            super().__init__(owner, rows)

    monkeypatch.setattr(decode_session, "_Steps", Counted)
    session, prompts = DecodeSession(bundle, "cpu"), np.array([[1, 2, 3], [4, 5, 6]])
    for rows in (1, 2, 1, 2):
        list(session.stream(prompts[:rows], 40, SamplingOptions()))
    assert made == [1, 2]


# Other programs.

VOCABULARIES = {
    "ascii": "".join(map(chr, range(128))),
    "foreign": "".join(sorted(set(FOREIGN + "ÿ\x7f\x80\xa0\xad\u2028€\U0010ffff"))),
    "one": "é",
}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_tokenizers_read_and_write_every_character(name: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    symbols = VOCABULARIES[name]
    theirs = tokenizers.Tokenizer.from_str(json.dumps(tokenizer(list(symbols))))
    random = np.random.default_rng(0)
    texts = [symbols, symbols[::-1], *symbols]
    texts += ["".join(random.choice(list(symbols), 50)) for _ in range(50)]
    for text in texts:
        ids = theirs.encode(text).ids
        assert ids == [symbols.index(character) for character in text]
        assert theirs.decode(ids) == text
    for unknown in ("ü", "a🦊", "\ud7ff"):
        if not set(unknown) <= set(symbols):
            assert max(theirs.encode(unknown).ids) >= len(symbols), "an id that graphs refuse"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ascii", "foreign"])
def test_transformers_loads_the_tokenizer(name: str, folders: dict[str, Path]) -> None:
    code = """
import sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(".")
text = sys.argv[1]
ids = tokenizer(text)["input_ids"]
assert tokenizer.decode(ids) == text
print(*ids)
"""
    pytest.importorskip("tokenizers")
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    codec = load_checkpoint(folders[name] / "r", device="cpu").codec
    text = "When I do count the clock\n" if name == "ascii" else FOREIGN
    done = subprocess.run(
        [sys.executable, "-c", code, text], cwd=folders[name] / "bundle", capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [int(i) for i in done.stdout.split()] == codec.encode(text)


READ_WITH_TRANSFORMERS = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(".")
ids = tokenizer(sys.argv[1])["input_ids"]
print(json.dumps([ids, tokenizer.decode(ids[1:])]))
"""

GENAI = """
import json, sys
import numpy as np
import onnxruntime_genai as og

prompt, start = json.loads(sys.argv[1])
model = og.Model(".")
found = {}
if prompt:
    tokenizer = og.Tokenizer(model)
    start = tokenizer.encode(prompt).tolist()
    found["decoded"] = tokenizer.decode(np.array(start, dtype=np.int32))
    stream = tokenizer.create_stream()
    found["streamed"] = "".join(stream.decode(i) for i in start)
found["ids"] = start
for name, options in (("greedy", {"do_sample": False}), ("sampled", {})):
    settings = og.GeneratorParams(model)
    settings.set_search_options(**options)
    generator = og.Generator(model, settings)
    generator.append_tokens(np.array(start, dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    found[name] = generator.get_sequence(0).tolist()
print(json.dumps(found))
"""


def genai(bundle: Path, prompt: str, start: list[int]) -> dict[str, Any]:
    """What onnxruntime-genai makes of a bundle, in another process: it has its own runtime."""
    done = subprocess.run(
        [sys.executable, "-c", GENAI, json.dumps([prompt, start])], cwd=bundle, capture_output=True,
        text=True, check=False, env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("name", "prompt"),
    [("ascii", "Shall I compare\n"), ("foreign", "日本語 naïve"), ("pixels", "")],
)
def test_onnxruntime_genai_draws_the_same_tokens(
    name: str, prompt: str, folders: dict[str, Path]
) -> None:
    if importlib.util.find_spec("onnxruntime_genai") is None:
        pytest.skip("onnxruntime-genai is not installed")
    trained = load_checkpoint(folders[name] / "r", device="cpu")
    start = trained.codec.encode(prompt)
    found = genai(folders[name] / "bundle", prompt, start)
    if prompt:
        assert found["ids"] == start
        assert found["decoded"] == found["streamed"] == prompt
    block_size = trained.model.config.block_size
    greedy = torch_tokens(
        trained, np.array([start]), block_size - len(start), SamplingOptions(temperature=0)
    )
    config = json.loads((folders[name] / "bundle" / "genai_config.json").read_text())
    expected = [*start, *greedy[0].tolist()]
    end = config["model"]["eos_token_id"]  # this data has none, but the program needs one
    if end in expected[len(start) :]:
        expected = expected[: expected.index(end, len(start))]
    assert found["greedy"] == expected
    assert found["sampled"][: len(start)] == start
    assert max(found["sampled"]) < trained.model.config.vocab_size


@pytest.mark.slow
def test_other_programs_read_subwords_alike(tmp_path: Path) -> None:
    dataset = {"use": "text", "tokenizer": {"train": 300}, "block_size": 16, "val_fraction": 0.1}
    run = train(tmp_path, dataset, SHAPE)
    bundle = export(run, out=tmp_path / "bundle").path
    codec = load_checkpoint(run, device="cpu").codec
    named = json.loads((bundle / "tokenizer_config.json").read_text())
    assert (named["eos_token"], named["split_special_tokens"]) == ("<|endoftext|>", True)
    text = " don't  stop, <|endoftext|> naïve\n🦊"
    if importlib.util.find_spec("transformers") is not None:
        command = [sys.executable, "-c", READ_WITH_TRANSFORMERS, text]
        assert json.loads(execute(*command, cwd=bundle)) == [codec.encode(text), text]
    if importlib.util.find_spec("onnxruntime_genai") is not None:
        prompt = "Thou 🦊"
        found = genai(bundle, prompt, [])
        assert [*codec.starts[0], *found["ids"]] == codec.encode(prompt)
        assert found["decoded"] == found["streamed"] == prompt


@pytest.mark.parametrize("number", [1, 3])
def test_every_file_names_the_tokens_that_end_a_sample(
    number: int, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load_checkpoint(folders["ascii"] / "r", device="cpu")
    start = trained.codec.encode("Shall I compare\n")
    greedy = torch_tokens(trained, np.array([start]), 8, SamplingOptions(temperature=0))[0].tolist()
    stops = list(dict.fromkeys([greedy[4], 1, 2, 0]))[:number]
    monkeypatch.setattr(type(trained.codec), "stop_tokens", tuple(stops))
    bundle = export(folders["ascii"] / "r", out=tmp_path / "bundle").path
    named = stops[0] if number == 1 else stops
    assert json.loads((bundle / "config.json").read_text())["eos_token_id"] == named
    config = json.loads((bundle / "genai_config.json").read_text())["model"]
    assert config["eos_token_id"] == named
    assert load_exported(bundle, device="cpu").metadata.tokens.stop_tokens == stops
    asked = SampleRequest("Shall I compare\n", tokens=8), SamplingOptions(temperature=0)
    ended = greedy[: next(i for i, token in enumerate(greedy) if token in stops)]
    assert load_exported(bundle, device="cpu").draw(*asked).token_ids() == [[*start, *ended]]
    if importlib.util.find_spec("onnxruntime_genai"):
        assert genai(bundle, "", start)["greedy"] == [*start, *ended]


def test_transformers_like_runners_find_the_names(bundle: Path, trained: LoadedModel) -> None:
    """A loop over model.onnx as optimum and transformers.js have it: names alone."""
    graph = session(bundle / "model.onnx")
    names = [x.name for x in graph.get_inputs()]
    outputs = [x.name for x in graph.get_outputs()]
    past = {n: np.zeros((1, 2, 0, 8), np.float32) for n in names if n.startswith("past_key_")}
    ids, drawn = np.array([[5, 6, 7]]), []
    total = 0
    for _ in range(20):
        total += ids.shape[1]
        inputs = {
            "input_ids": ids, "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(total - ids.shape[1], total)[None], **past,
        }  # fmt: skip
        found = dict(zip(outputs, graph.run(None, inputs), strict=True))
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        ids = found["logits"][:, -1:].argmax(axis=-1)
        drawn.append(int(ids[0, 0]))
    expected = torch_tokens(trained, np.array([[5, 6, 7]]), 20, SamplingOptions(temperature=0))
    assert drawn == expected[0].tolist()


def test_symbols_of_several_characters_have_no_tokenizer(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign codec's tokens may be whole words, which a table of characters cannot cut."""
    path = folders["ascii"] / "r"
    codec = load_checkpoint(path, device="cpu").codec
    assert isinstance(codec, TextCodec)
    words = [2 * piece for piece in codec.token_bytes]
    monkeypatch.setattr(type(codec), "token_bytes", words)
    bundle = export(path, out=tmp_path / "bundle").path
    assert not (bundle / "tokenizer.json").exists()
    assert (bundle / "config.json").exists()
