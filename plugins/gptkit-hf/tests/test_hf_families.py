"""Every family both ways: transformers, the formulas in numpy, and gptkit give equal logits."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import gptkit
from gptkit.plugin import RunError, UsageError
from gptkit.testing import make_model
from gptkit_hf import reference
from gptkit_hf.families import to_config, to_options
from gptkit_hf.mapping import ToGptkit, ToHf, swap_halves

IDS = (torch.arange(32) * 7 % 65).tolist()
KINDS = (
    "gpt2", "gpt2-untied", "gpt2-gelu", "llama", "llama-tied", "llama-scaled", "llama-biased",
    "llama-smollm", "mistral", "mistral-whole", "qwen2", "qwen2-windows", "qwen3", "qwen3-windows",
    "arcee", "arcee-biased", "nanochat", "nanochat-plain",
)  # fmt: skip
EQUAL = 1e-5


def config_of(model: Any) -> dict[str, Any]:
    """What transformers writes as config.json."""
    contents: dict[str, Any] = json.loads(model.config.to_json_string())
    return contents


def tensors_of(model: Any) -> dict[str, Tensor]:
    tensors = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return tensors


@torch.no_grad()
def theirs(model: Any) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = model(torch.tensor([IDS])).logits[0].numpy()
    return logits


def ours(options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> NDArray[np.float32]:
    module: Any = make_model(options, weights).module
    with torch.no_grad():
        logits: NDArray[np.float32] = module.logits(torch.tensor([IDS]))[0].numpy()
    return logits


def apart(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference, in parts of the largest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_formulas_give_the_logits_of_transformers(
    kind: str, random_model: Callable[[str], Any]
) -> None:
    model = random_model(kind)
    found = reference.logits(config_of(model), tensors_of(model), IDS)
    assert found.dtype == np.float32
    assert apart(found, theirs(model)) <= EQUAL


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_comes_in_and_goes_out(kind: str, random_model: Callable[[str], Any]) -> None:
    transformers = pytest.importorskip("transformers")
    model = random_model(kind)
    config, expected = config_of(model), theirs(model)
    options = to_options(config)
    weights = ToGptkit(config, tensors_of(model))
    assert apart(ours(options, weights), expected) <= EQUAL

    written, back = to_config(options), ToHf(options, weights)
    assert reference_apart(written, back, expected) <= EQUAL
    again = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**written)
    ).eval()
    loaded = again.load_state_dict(dict(back), strict=False)
    again.tie_weights()
    assert not loaded.unexpected_keys
    assert set(loaded.missing_keys) <= {"lm_head.weight"}
    assert apart(theirs(again), expected) <= EQUAL
    assert type(again).__name__ == written["architectures"][0]

    # In once more: the same weights to the bit, but where scales were multiplied into them.
    twice = ToGptkit(written, back)
    assert to_options(written) == options | {"tie_embeddings": twice_tied(kind, options)}
    if kind != "nanochat-plain":
        for name, weight in weights.items():
            assert torch.equal(twice[name], weight), name
    assert apart(ours(to_options(written), twice), expected) <= EQUAL


def twice_tied(kind: str, options: Mapping[str, Any]) -> bool:
    return bool(options["tie_embeddings"]) and not kind.startswith("nanochat")


def reference_apart(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], expected: NDArray[np.float32]
) -> float:
    return apart(reference.logits(config, tensors, IDS), expected)


SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 65, "block_size": 32}
ROTARY = SIZES | {"norm": "rmsnorm", "position": "rotary", "bias": False}
QWEN3 = ROTARY | {"mlp": "swiglu", "qk_norm": True}
OURS: dict[str, tuple[dict[str, Any], str]] = {
    "defaults": (SIZES, "GPT2"),
    "gpt2": (SIZES | {"mlp": "gelu_tanh", "tie_embeddings": False}, "GPT2"),
    "no biases": (SIZES | {"bias": False}, "GPT2"),
    "no query biases": (SIZES | {"qkv_bias": False, "mlp": "relu2"}, "GPT2"),
    "llama": (ROTARY | {"mlp": "swiglu", "n_kv_head": 2}, "Llama"),
    "biases": (ROTARY | {"mlp": "swiglu", "bias": True, "qkv_bias": False}, "Llama"),
    "normed embedding": (ROTARY | {"mlp": "swiglu", "embed_norm": True}, "Llama"),
    "odd heads": (ROTARY | {"mlp": "swiglu", "n_head": 3, "head_dim": 8}, "Mistral"),
    "window": (ROTARY | {"mlp": "swiglu", "window": 5}, "Mistral"),
    "window that sees all": (ROTARY | {"mlp": "swiglu", "window": 32}, "Llama"),
    "relu2 in windows": (ROTARY | {"mlp": "relu2", "window": 5}, "Mistral"),
    "pattern": (ROTARY | {"mlp": "swiglu", "window": 5, "window_pattern": "SL"}, "Qwen2"),
    "qwen2": (ROTARY | {"mlp": "swiglu", "qkv_bias": True}, "Qwen2"),
    "plain norms": (QWEN3, "Qwen3"),
    "scaled norms": (QWEN3 | {"qk_norm_scale": True, "norm_eps": 1e-3}, "Qwen3"),
    "shakespeare": (QWEN3 | {"mlp": "relu2"}, "Qwen3"),
    "arcee": (ROTARY | {"mlp": "relu2", "rope_theta": 500.0}, "Arcee"),
    "gelu": (ROTARY | {"mlp": "gelu"}, "Arcee"),
    "nanochat": (QWEN3 | {"mlp": "relu2", "embed_norm": True, "logit_softcap": 3.0}, "NanoChat"),
    "gelu in nanochat": (QWEN3 | {"mlp": "gelu_tanh", "embed_norm": True}, "NanoChat"),
    "normed qwen3": (QWEN3 | {"embed_norm": True, "tie_embeddings": True}, "Qwen3"),
}


@pytest.mark.parametrize("kind", OURS)
def test_models_of_gptkit_are_models_of_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    options, family = OURS[kind]
    model = make_model(options)
    module: Any = model.module
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) * (0.3 if weight.dim() == 1 else 0.05))
        expected = module.logits(torch.tensor([IDS]))[0].numpy()
    config, tensors = to_config(model.config), ToHf(model.config, model.weights)
    assert config["architectures"][0].startswith(family)
    assert reference_apart(config, tensors, expected) <= EQUAL
    made = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config)
    ).eval()
    loaded = made.load_state_dict(dict(tensors), strict=False)
    made.tie_weights()
    assert not loaded.unexpected_keys
    assert set(loaded.missing_keys) <= {"lm_head.weight"}
    assert apart(theirs(made), expected) <= EQUAL
    assert apart(ours(to_options(config), ToGptkit(config, tensors)), expected) <= EQUAL


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (SIZES | {"norm": "rmsnorm"}, "GPT2LMHeadModel, but for model.norm"),
        (
            SIZES | {"qk_norm": True, "logit_softcap": 3.0},
            "GPT2LMHeadModel, but for model.logit_softcap and model.qk_norm",
        ),
        (SIZES | {"n_kv_head": 2}, "GPT2LMHeadModel, but for model.n_kv_head"),
        (SIZES | {"window": 4}, "GPT2LMHeadModel, but for model.window"),
        (
            ROTARY | {"mlp": "swiglu", "logit_softcap": 3.0},
            "LlamaForCausalLM, but for model.logit_softcap",
        ),
        (
            QWEN3 | {"bias": True},
            "LlamaForCausalLM, but for model.qk_norm; Qwen3ForCausalLM, but for model.bias",
        ),
        (ROTARY | {"mlp": "gelu", "window": 5}, "ArceeForCausalLM, but for model.window"),
        (QWEN3 | {"new_option": 3}, "gptkit-hf does not know model.new_option"),
    ],
)
def test_what_no_family_has_is_refused_by_its_option(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        to_config(options)
    assert named in str(caught.value)
    assert caught.value.hint


LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 65,
    "max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({"model_type": "gemma2"}, ['model_type = "gemma2"']),
        ({"model_type": ["llama"]}, ['model_type = ["llama"]']),
        ({"model_type": None}, ["model_type = null"]),
        ({"architectures": ["LlamaForTokenClassification"]}, ["architectures = "]),
        ({"attention_bias": True}, ["attention_bias = true beside mlp_bias = false"]),
        ({"hidden_act": "gelu"}, ['hidden_act = "gelu" is not one of "silu"']),
        ({"rope_scaling": YARN}, ['rope_scaling.rope_type = "yarn"']),
        ({"rope_parameters": {"rope_type": "linear"}}, ['rope_parameters.rope_type = "linear"']),
        ({"rope_scaling": {"type": "llama3", "factor": 0}}, ["factor = 0 should be a number"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor = 0.5"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config = "]),
        ({"hidden_size": -32}, ["hidden_size = -32 should be a whole number"]),
        ({"hidden_size": "32"}, ['hidden_size = "32" should be']),
        ({"hidden_size": 32.0}, ["hidden_size = 32.0 should be"]),
        ({"hidden_size": None}, ["hidden_size is missing"]),
        ({"vocab_size": 10**30}, ["vocab_size = 1000000"]),
        ({"num_hidden_layers": 10**9}, ["1,000,000,000 layers should be at most 10,000"]),
        ({"num_attention_heads": 5}, ["width 32 should be divisible by 5 heads"]),
        ({"num_key_value_heads": 3}, ["4 heads should be divisible by 3"]),
        ({"head_dim": 7}, ["heads should have an even width"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps = NaN should be a number above 0"]),
        ({"rope_theta": float("inf")}, ["rope_theta = Infinity"]),
        ({"rope_theta": 10**400}, ["rope_theta = 10000"]),
        ({"tie_word_embeddings": "no"}, ["tie_word_embeddings = "]),
        (
            {"hidden_act": "relu6", "attention_bias": True, "rope_scaling": YARN},
            ["hidden_act", "attention_bias", "rope_type"],
        ),
        ({"model_type": "qwen3", "attention_bias": True}, ["attention_bias = true"]),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["chunked"]},
            ['layer_types = ["chunked"]'],
        ),
        (
            {"model_type": "mistral", "layer_types": ["full_attention"]},
            ["layer_types = "],
        ),
    ],
)
def test_configs_that_gptkit_does_not_have_are_refused_by_name(
    changes: dict[str, Any], faults: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        to_options(LLAMA | changes)
    for fault in faults:
        assert fault in str(caught.value)
    assert "Llama" in str(caught.value.hint)


@pytest.mark.parametrize(
    "changes", [{"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_weights": False}]
)
def test_options_of_gpt2_that_gptkit_does_not_have_are_refused(changes: dict[str, Any]) -> None:
    config = {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 5}
    assert to_options(config)["block_size"] == 1024
    with pytest.raises(UsageError, match=next(iter(changes))):
        to_options(config | changes)


def test_old_and_new_keys_of_rotary_positions_are_read() -> None:
    scaling = {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    old = {"rope_theta": 5e5, "rope_scaling": scaling | {"rope_type": "llama3"}}
    new = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **scaling}}
    first, second = to_options(LLAMA | old), to_options(LLAMA | new)
    assert first == second
    assert first["rope_theta"] == 5e5
    assert first["rope_scaling"] == scaling | {"rope_type": "llama3"}
    assert "rope_theta" not in to_options(LLAMA | {"rope_scaling": None, "rope_theta": 10000})


def test_pairs_of_neighbours_are_rotated_as_llama_cpp_does(
    random_model: Callable[[str], Any],
) -> None:
    model = random_model("llama")
    config, tensors = config_of(model), tensors_of(model)
    for name, heads in (("q_proj", 4), ("k_proj", 2)):
        for layer in range(3):
            key = f"model.layers.{layer}.self_attn.{name}.weight"
            rows = tensors[key].unflatten(0, (heads, 2, -1))
            tensors[key] = rows.transpose(1, 2).flatten(0, 2)
    found = reference.logits(config, tensors, IDS, interleaved=True)
    assert apart(found, theirs(model)) <= EQUAL


def test_a_gate_that_is_not_the_value_is_refused(random_model: Callable[[str], Any]) -> None:
    model = random_model("llama")
    weights = ToGptkit(config_of(model) | {"hidden_act": "relu"}, tensors_of(model))
    with pytest.raises(RunError, match="a gate that is not equal to up_proj"):
        weights["h.0.mlp.up.weight"]


def test_halves_swapped_twice_are_as_before() -> None:
    rows = torch.arange(24.0).reshape(12, 2)
    swapped = swap_halves(rows, 6)
    assert swapped[:6, 0].tolist() == [6, 8, 10, 0, 2, 4]
    assert torch.equal(swap_halves(swapped, 6), rows)


def test_a_mapping_reads_nothing_before_it_is_asked() -> None:
    class Untouched(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            raise AssertionError(name)

    options = ROTARY | {"mlp": "swiglu"}
    names = Untouched.fromkeys(ToHf(options, {}).shapes, torch.zeros(1))
    weights = ToGptkit(to_config(options), names)
    assert "h.1.mlp.up.weight" in weights
    assert len(weights) == len(list(weights)) == 2 + 2 * 6
    assert gptkit.__version__
