import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from gptkit.recipe.options import (
    PRESETS,
    AdamWOptions,
    GPTConfig,
    ModelOptions,
    MuonOptions,
    Options,
    TrainOptions,
)

MINGPT = {  # n_layer, n_head, n_embd, as in minGPT's mingpt/model.py
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
    "gopher-44m": (8, 16, 512),
    "gpt-mini": (6, 6, 192),
    "gpt-micro": (4, 4, 128),
    "gpt-nano": (3, 3, 48),
}
MODEL_SIZES = ("n_layer", "n_head", "n_kv_head", "n_embd", "n_inner")
TRAIN_SIZES = (
    "steps", "batch_size", "micro_batch_size", "eval_every", "eval_batches", "save_every", "keep",
)  # fmt: skip


def config(**options: Any) -> GPTConfig:
    return GPTConfig(vocab_size=65, block_size=32, **options)


def sizes(options: ModelOptions) -> tuple[int, int, int]:
    return options.n_layer, options.n_head, options.n_embd


@pytest.mark.parametrize("preset", MINGPT)
def test_a_preset_fills_in_mingpts_sizes(preset: Any) -> None:
    assert sizes(ModelOptions(preset=preset)) == MINGPT[preset]


def test_every_preset_can_be_named() -> None:
    assert MINGPT.keys() == PRESETS.keys()
    for preset in PRESETS:  # GPT-2's GELU is the approximation, but only its own
        mlp = ModelOptions.model_validate({"preset": preset}).mlp
        assert mlp == ("gelu_tanh" if preset.startswith("gpt2") else "gelu")
        assert ModelOptions.model_validate({"preset": preset}).preset


def test_sizes_beside_a_preset_win_and_stay_when_written() -> None:
    options = ModelOptions(preset="gpt-nano", n_layer=7, n_embd=96)
    assert sizes(options) == (7, 3, 96)
    assert ModelOptions(**options.model_dump()) == options
    assert sizes(config(**options.model_dump())) == (7, 3, 96)


def test_the_second_name_that_0_1_had_for_gpt2_can_still_be_read() -> None:
    written = {"preset": "openai-gpt", "vocab_size": 40478, "block_size": 512}
    assert sizes(GPTConfig.model_validate(written)) == MINGPT["gpt2"]
    assert sizes(GPTConfig.model_validate_json(json.dumps(written))) == MINGPT["gpt2"]
    assert sizes(GPTConfig.model_validate(written | {"n_layer": 3})) == (3, 12, 768)
    assert ModelOptions.model_validate({"preset": "openai-gpt"}).preset == "gpt2"


def test_head_size_and_kv_heads() -> None:
    assert config(n_embd=96, n_head=6).head_size == 16
    assert config(n_embd=96, n_head=6).kv_heads == 6
    assert config(n_embd=96, n_head=6, n_kv_head=2).kv_heads == 2


def test_the_inner_layer_is_four_times_as_wide() -> None:
    assert config(mlp="gelu", n_embd=96).inner_size == 384
    assert config(mlp="relu2", n_embd=96).inner_size == 384


@pytest.mark.parametrize("n_embd", [2, 24, 48, 96, 120, 768, 4096])
def test_swiglu_rounds_eight_thirds_up_to_64s(n_embd: int) -> None:
    inner = config(mlp="swiglu", n_embd=n_embd, n_head=1).inner_size
    assert inner == 64 * math.ceil(8 * n_embd / (3 * 64))


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_n_inner_wins(mlp: str) -> None:
    assert config(mlp=mlp, n_inner=100).inner_size == 100


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"n_embd": 100, "n_head": 6}, "n_embd 100 should be divisible by n_head 6"),
        ({"preset": "gpt-nano", "n_head": 5}, "n_embd 48 should be divisible by n_head 5"),
        ({"n_head": 6, "n_kv_head": 4}, "n_head 6 should be divisible by n_kv_head 4"),
        ({"n_head": 6, "n_kv_head": 12}, "n_head 6 should be divisible by n_kv_head 12"),
        ({"n_embd": 30, "n_head": 6, "position": "rotary"}, "even head size.* 30 / n_head 6 = 5"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": math.nan}, "dropout"),
        ({"norm": "batchnorm"}, "norm"),
        ({"position": "alibi"}, "position"),
        ({"mlp": "relu"}, "mlp"),
        ({"preset": "gpt3"}, "preset"),
        ({"n_layers": 6}, "n_layers"),
        ({"n_layer": "6"}, "n_layer"),
        ({"n_layer": True}, "n_layer"),
        ({"n_layer": 6.0}, "n_layer"),
        ({"bias": 1}, "bias"),
        ({"dropout": "0.1"}, "dropout"),
    ],
)
def test_wrong_model_options_are_refused_by_name(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        ModelOptions(**options)


def test_an_odd_head_size_is_fine_without_rotation() -> None:
    assert config(n_embd=30, n_head=6).head_size == 5


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (
            {"batch_size": 32, "micro_batch_size": 5},
            "batch_size 32 should be a multiple of micro_batch_size 5",
        ),
        (
            {"batch_size": 4, "micro_batch_size": 8},
            "batch_size 4 should be a multiple of micro_batch_size 8",
        ),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"optimizer": {"use": "sgd"}}, "'adamw', 'muon'"),
        ({"optimizer": {"muon_momentum": 0.5}}, "muon_momentum"),
        ({"learning_rate": 0.1}, "learning_rate"),
        ({"dtype": "float16"}, "dtype"),
        ({"device": "gpu"}, "device"),
        ({"device": "cuda:"}, "device"),
        ({"device": "cuda:x"}, "device"),
        ({"device": 0}, "device"),
        ({"compile": "sometimes"}, "compile"),
        ({"compile": 1}, "compile"),
        ({"step": 10}, "step"),
        ({"steps": "100"}, "steps"),
    ],
)
def test_wrong_train_options_are_refused_by_name(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        TrainOptions(**options)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"betas": (0.9, 1.0)}, "betas should be below 1"),
        ({"betas": (-0.1, 0.95)}, "greater than or equal to 0"),
        ({"betas": (0.9,)}, "Field required"),
        ({"learning_rate": 0.0}, "greater than 0"),
        ({"learning_rate": math.nan}, "finite"),
        ({"learning_rate": math.inf}, "finite"),
        ({"learning_rate": True}, "valid number"),
        ({"muon_learning_rate": 0.0}, "greater than 0"),
        ({"muon_momentum": 1.0}, "less than 1"),
        ({"muon_momentum": -0.1}, "greater than or equal to 0"),
        ({"weight_decay": -0.1}, "greater than or equal to 0"),
        ({"weight_decay": math.inf}, "finite"),
    ],
)
def test_wrong_optimizer_options_are_refused_by_name(options: dict[str, Any], fault: str) -> None:
    (name,) = options
    with pytest.raises(ValidationError, match=rf"optimizer\.muon(\.{name}.*\n|\n).*{fault}"):
        TrainOptions(optimizer={"use": "muon"} | options)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1])
def test_sizes_and_counts_must_be_positive(value: int) -> None:
    for name in MODEL_SIZES:
        with pytest.raises(ValidationError, match=name):
            ModelOptions(**{name: value})
    for name in TRAIN_SIZES:
        with pytest.raises(ValidationError, match=name):
            TrainOptions(**{name: value})
    for name in ("vocab_size", "block_size"):
        with pytest.raises(ValidationError, match=name):
            GPTConfig(**{"vocab_size": 65, "block_size": 32, name: value})


def test_the_sizes_of_the_data_must_be_given() -> None:
    with pytest.raises(ValidationError, match=r"(?s)vocab_size.*block_size"):
        GPTConfig()  # type: ignore[call-arg]


def test_whole_numbers_and_lists_do_as_rates_and_betas() -> None:
    options = AdamWOptions(learning_rate=1, betas=[0, 0.9])  # type: ignore[arg-type]
    assert (options.learning_rate, options.betas) == (1.0, (0.0, 0.9))


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:11"])
def test_every_device_name_is_taken(device: str) -> None:
    assert TrainOptions(device=device).device == device


@pytest.mark.parametrize("options", [ModelOptions(), TrainOptions(), AdamWOptions(), MuonOptions()])
def test_options_are_frozen_and_explained(options: Options) -> None:
    for name, field in type(options).model_fields.items():
        assert field.description, name
        with pytest.raises(ValidationError, match="frozen"):
            setattr(options, name, getattr(options, name))
