"""Random models of transformers, one for each way in which a family can be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

SMALL = {
    "vocab_size": 65,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 16,
}
GPT2 = {"vocab_size": 65, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 32}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gpt2-untied": GPT2 | {"tie_word_embeddings": False, "n_inner": 40},
    "gpt2-gelu": GPT2 | {"activation_function": "gelu", "layer_norm_epsilon": 1e-3},
    "llama": SMALL | {"num_key_value_heads": 2},
    "llama-tied": SMALL | {"tie_word_embeddings": True, "rms_norm_eps": 1e-2},
    "llama-scaled": SMALL | {"rope_parameters": LLAMA3},
    "llama-biased": SMALL | {"attention_bias": True, "mlp_bias": True},
    # As SmolLM2-135M: 9 query and 3 key heads of width 64.
    "llama-smollm": SMALL
    | {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
       "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}},
    "mistral": SMALL | {"sliding_window": 5, "num_key_value_heads": 2, "head_dim": 8},
    "mistral-whole": SMALL | {"sliding_window": None, "num_key_value_heads": 2},
    "qwen2": SMALL | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2-windows": SMALL
    | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": SMALL | {"num_key_value_heads": 2, "head_dim": 16},
    "qwen3-windows": SMALL
    | {"use_sliding_window": True, "sliding_window": 4, "head_dim": 12,
       "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "arcee": SMALL | {"num_key_value_heads": 2},
    "arcee-biased": SMALL | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_new"},
    "nanochat": SMALL | {"num_key_value_heads": 2, "pad_token_id": None},
    "nanochat-plain": SMALL
    | {"final_logit_softcapping": None, "tie_word_embeddings": True, "pad_token_id": None},
}  # fmt: skip


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the Hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def random_model() -> Callable[[str], Any]:
    """A model of transformers whose norms and biases are not what they begin with."""
    transformers = pytest.importorskip("transformers")

    def make(name: str) -> Any:
        config = transformers.AutoConfig.for_model(name.split("-")[0], **MODELS[name])
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
                else:
                    parameter.mul_(4)
        return model

    return make


@pytest.fixture
def saved_model(random_model: Callable[[str], Any], tmp_path: Path) -> Callable[..., Path]:
    """A folder that transformers wrote, with a random model."""

    def save(name: str, **options: Any) -> Path:
        folder = tmp_path / name
        random_model(name).save_pretrained(folder, **options)
        return folder

    return save
