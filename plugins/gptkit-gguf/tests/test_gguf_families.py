"""Every family in both directions; llama.cpp continues the files with the model's own tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gptkit.plugin import Data, ExportError, RunError, TrainedModel, UsageError
from gptkit.testing import check_format
from gptkit_char_text.codec import CharCodec
from gptkit_gguf import proof
from gptkit_gguf.format import Gguf
from gptkit_gguf.header import read_header
from gptkit_gguf.names import layout
from gptkit_hf import reference
from gptkit_hf.families import to_config
from gptkit_hf.mapping import ToGptkit
from gptkit_text.codec import TokenizerCodec

Llama = Callable[..., dict[str, Any]]
VOCAB, BLOCK = 260, 64
SHAPE: dict[str, Any] = {
    "n_layer": 2, "n_head": 6, "n_kv_head": 2, "n_embd": 96, "n_inner": 160, "norm": "rmsnorm",
    "position": "rotary", "mlp": "swiglu", "bias": False, "vocab_size": VOCAB, "block_size": BLOCK,
}  # fmt: skip
SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
GPT2 = SHAPE | {
    "norm": "layernorm", "position": "learned", "bias": True, "n_kv_head": None, "n_inner": 384,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, untied": ("llama", {"tie_embeddings": False, "rope_theta": 100_000.0}),
    "llama, stretched": ("llama", {"rope_scaling": SCALING, "norm_eps": 1e-6}),
    "llama, biases": ("llama", {"bias": True, "n_kv_head": None}),
    "llama, wide heads": ("llama", {"head_dim": 24}),
    "mistral, short": ("llama", {"window": BLOCK, "n_head": 4, "n_kv_head": 1}),
    "qwen2": ("qwen2", {"qkv_bias": True, "tie_embeddings": False}),
    "qwen3": ("qwen3", {"qk_norm": True, "qk_norm_scale": True, "head_dim": 32}),
    "arcee": ("arcee", {"mlp": "relu2", "n_inner": 384}),
    "gpt2": ("gpt2", GPT2 | {"mlp": "gelu_tanh"}),
    "gpt2, untied": ("gpt2", GPT2 | {"mlp": "gelu_tanh", "tie_embeddings": False}),
    "gpt2, exact gelu": ("gpt2", GPT2 | {"mlp": "gelu"}),
}
NEAR = {"f32": 2e-3, "f16": 2e-2, "q8_0": 8e-2}
"""How far apart llama.cpp's logits may be, in parts of the largest: its cache has float16, and
with q8_0 it rounds activations, too."""


class Reference(nn.Module):
    """The formulas of the papers, in place of a trained model."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config, self.tensors = config, tensors

    def logits(self, ids: Tensor) -> Tensor:
        found = [reference.logits(self.config, self.tensors, row.tolist()) for row in ids]
        return torch.from_numpy(np.stack(found))


def no_data() -> Data:
    raise AssertionError("a GGUF file needs no data")


def random_tensors(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors with clear preferences, by transformers' names; norms and biases, too."""
    random = torch.Generator().manual_seed(1)
    found = {}
    for name, place in layout(config).items():
        shape = place.shape[::-1] if place.change == "turned" else place.shape
        drawn = torch.randn(shape, generator=random)
        if len(shape) > 1:
            found[name] = drawn * (1.0 if "embed" in name or "wte" in name else 0.2)
        else:
            found[name] = 0.2 * drawn + (1.0 if name.endswith("weight") else 0.0)
    return found


def model_of(name: str) -> TrainedModel:
    config = to_config(SHAPE | FAMILIES[name][1])
    tensors = random_tensors(config)
    options = {"logit_softcap": None, "window": None, **SHAPE, **FAMILIES[name][1]}
    return TrainedModel(
        module=Reference(config, tensors),
        config=options,
        weights=ToGptkit(config, tensors),
        codec=TokenizerCodec(tokenizer="", end=256),
        dataset="text",
        step=3,
        val_loss=None,
        weights_sha256="0" * 64,
        load_data=no_data,
        about={"license": "apache-2.0"},
    )


def written(model: TrainedModel, path: Path, dtype: str = "f32") -> Path:
    Gguf.model_validate({"dtype": dtype}).write(model, path)
    return path


def logits_of(model: TrainedModel, ids: Sequence[int]) -> NDArray[np.float32]:
    assert isinstance(model.module, Reference)
    return model.module.logits(torch.tensor([ids]))[0].numpy()


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_continues_with_the_same_tokens(
    name: str, dtype: str, llama: Llama, tmp_path: Path
) -> None:
    model = model_of(name)
    prompt = [256, *b"Some bytes to begin with.", 250, 3, 200]
    path = written(model, tmp_path / "a.gguf", dtype)
    assert read_header(path).fields["general.architecture"] == FAMILIES[name][0]
    found = llama(path, ids=prompt, count=24)
    assert found["trained"] == BLOCK
    greedy = found["greedy"]
    ids = [*prompt, *greedy]
    logits = logits_of(model, ids)[len(prompt) - 1 : -1]
    largest = np.abs(logits).max()
    leads = [row.max() - row[token] for row, token in zip(logits, greedy, strict=True)]
    assert max(leads) <= NEAR[dtype] * largest
    assert np.count_nonzero(leads) <= (0 if dtype == "f32" else 4)
    assert len(greedy) == 24 or greedy[-1] == 256


@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_written_is_read_again(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    path = written(model, tmp_path / "a.gguf")
    assert Gguf().reads(str(path))
    read = Gguf().read(str(path))
    expected = dict(model.config)
    if name == "gpt2, exact gelu":
        expected["mlp"] = "gelu_tanh"
    if name == "mistral, short":
        expected["window"] = None
    kept = {key: value for key, value in expected.items() if value not in (None, False)}
    found = {key: value for key, value in read.config.items() if value not in (None, False)}
    defaults = {"tie_embeddings": True, "rope_theta": 1e4, "norm_eps": 1e-5}
    assert defaults | found == defaults | kept
    assert set(read.weights) == set(model.weights)
    for key, tensor in model.weights.items():
        assert torch.equal(read.weights[key], tensor), key
    ids = [1, 2, 3, 250, 7]
    if name != "gpt2, exact gelu":
        wanted = logits_of(model, ids)
        assert np.abs(read.logits(ids) - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert read.codec.encode("a") == model.codec.encode("a") == [256, 97]
    assert read.codec.stop_tokens == (256,)
    assert read.about["license"] == "apache-2.0"
    assert (read.about["format"], read.about["dtypes"]) == ("gguf", ["F32"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mlp": "relu2", "qk_norm": True}, "model.mlp, model.qk_norm"),
        ({"mlp": "relu2", "qk_norm": True, "embed_norm": True}, "model.embed_norm"),
        ({"logit_softcap": 15.0, "mlp": "relu2", "qk_norm": True, "embed_norm": True},
         "model.embed_norm, model.logit_softcap"),
        ({"window": 16}, "model.window"),
        ({"window": 16, "window_pattern": "SL"}, "model.window"),
        ({"qkv_bias": True, "rope_scaling": SCALING}, "model.rope_scaling"),
        ({"mlp": "gelu"}, "model.mlp"),
        ({"mlp": "relu2", "bias": True}, "model.bias"),
        (GPT2 | {"mlp": "relu2"}, "model.mlp"),
        ({"norm": "layernorm"}, "model.norm"),
    ],
    ids=str,
)  # fmt: skip
def test_what_llama_cpp_lacks_is_refused_by_its_options(
    options: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError) as error:
        Gguf().opens_as({"window": None, "logit_softcap": None, **SHAPE, **options})
    assert named in str(error.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_opens_as_names_the_architecture(name: str) -> None:
    assert Gguf().opens_as(model_of(name).config) == FAMILIES[name][0]


def test_characters_are_written_but_not_read(tmp_path: Path) -> None:
    model = replace(model_of("llama"), codec=CharCodec(vocabulary="ab"))
    path = written(model, tmp_path / "a.gguf")
    assert read_header(path).fields["tokenizer.ggml.model"] == "rwkv"
    with pytest.raises(UsageError, match="tokenizer 'rwkv' is not supported"):
        Gguf().read(str(path))


def test_a_file_that_is_not_the_model_gets_no_name(
    tmp_path: Path,
) -> None:
    model = model_of("llama")
    path = written(model, tmp_path / "a.gguf")
    header, places = read_header(path), layout(to_config(model.config))
    other = {
        name: tensor.clone() for name, tensor in random_tensors(to_config(model.config)).items()
    }
    proof.prove_tensors(header, places, other, "f32")
    other["model.layers.1.self_attn.k_proj.weight"][3, 4] += 1e-3
    with pytest.raises(ExportError, match=r"blk\.1\.attn_k\.weight differs by 0\.001"):
        proof.prove_tensors(header, places, other, "f32")


def test_queries_in_the_wrong_order_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trap of llama.cpp: rows of queries and keys in halves instead of pairs."""
    monkeypatch.setattr("gptkit_gguf.names.Place.to_gguf", lambda place, tensor: tensor)
    monkeypatch.setattr("gptkit_gguf.names.Place.to_hf", lambda place, tensor, pairs=False: tensor)
    with pytest.raises(ExportError, match="not equal to the model: logits differ"):
        written(model_of("llama"), tmp_path / "a.gguf")


def test_numbers_beyond_float16_are_refused(tmp_path: Path) -> None:
    model = model_of("llama")
    weights = dict(model.weights)
    weights["h.0.mlp.proj.weight"] = weights["h.0.mlp.proj.weight"] * 1e6
    with pytest.raises(ExportError, match=r"blk\.0\.ffn_down\.weight differs by"):
        written(replace(model, weights=weights), tmp_path / "a.gguf", "f16")


def test_another_model_than_the_files_metadata_is_damage(tmp_path: Path) -> None:
    path = written(model_of("qwen3"), tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes().replace(b"qwen3", b"qwen2"))
    with pytest.raises((RunError, UsageError), match="blk"):
        Gguf().read(str(path))


def test_the_contract_of_formats_holds(tmp_path: Path) -> None:
    path = check_format(Gguf(), tmp_path)
    assert read_header(path).fields["general.architecture"] == "gpt2"
