"""The forward pass in numpy, by the papers' formulas and transformers' names of the tensors.

It shares no code with gptkit's model, nor with the mapping of weights, so that it can prove both.
Radford et al. 2019 (GPT-2); Touvron et al. 2023 (Llama); Su et al. 2021 (rotary positions); Zhang &
Sennrich 2019 (RMS norm); Jiang et al. 2023 (windows); Dubey et al. 2024 (Llama 3's scaling).

Shapes: T tokens, C the width, nh query heads, nkv key and value heads, hs the width of a head.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
Activation = Callable[[Floats], Floats]


def logits(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    ids: Sequence[int],
    *,
    interleaved: bool = False,
) -> Floats:
    """Logits of the next token, float32 (T, vocab_size), of token ids (T,).

    Args:
        config: the contents of a config.json that `families.to_options` knows.
        tensors: by transformers' names; each is asked for once and dropped, but the embedding,
            which a tied head asks for again.
        ids: at most as many as the context.
        interleaved: rotate neighbours instead of halves, as llama.cpp does for Llama; rows of
            queries and keys are then in that order.
    """
    numbers = np.asarray(ids, dtype=np.int64)
    if config["model_type"] == "gpt2":
        return _GPT2(config, tensors).logits(numbers)
    return _Rotary(config, tensors, interleaved=interleaved).logits(numbers)


class _Decoder:
    """What all have: a residual stream, attention, an MLP, a head."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.config, self.tensors = config, tensors

    def get(self, name: str) -> Floats:
        """A tensor in float32."""
        found: Floats = self.tensors[name].detach().float().numpy()
        return found

    def linear(self, x: Floats, name: str) -> Floats:
        """The product x W^T + b of a matrix (outputs, inputs), with a bias if there is one."""
        y = x @ self.get(f"{name}.weight").T
        return y + self.get(f"{name}.bias") if f"{name}.bias" in self.tensors else y

    def head(self, x: Floats, embedding: str, *, tied: bool) -> Floats:
        """Logits of the residual stream after the last norm."""
        return x @ self.get(embedding if tied else "lm_head.weight").T

    def setting(self, name: str, default: Any) -> Any:
        """A value of the config.json, or what transformers takes where it is missing or null."""
        value = self.config.get(name)
        return default if value is None else value


class _GPT2(_Decoder):
    def logits(self, ids: NDArray[np.int64]) -> Floats:
        config, name = self.config, "transformer."
        x = self.get(f"{name}wte.weight")[ids] + self.get(f"{name}wpe.weight")[: len(ids)]
        for layer in range(config["n_layer"]):
            part = f"{name}h.{layer}."
            x = x + self.attention(self.norm(x, f"{part}ln_1"), f"{part}attn.")
            x = x + self.mlp(self.norm(x, f"{part}ln_2"), f"{part}mlp.")
        tied = self.setting("tie_word_embeddings", True)
        return self.head(self.norm(x, f"{name}ln_f"), f"{name}wte.weight", tied=tied)

    def linear(self, x: Floats, name: str) -> Floats:
        """GPT-2 has its matrices as (inputs, outputs)."""
        return x @ self.get(f"{name}.weight") + self.get(f"{name}.bias")

    def norm(self, x: Floats, name: str) -> Floats:
        """Layer norm (Ba et al. 2016)."""
        centred = x - x.mean(-1, keepdims=True)
        variance = np.square(centred).mean(-1, keepdims=True)
        scaled = centred / np.sqrt(variance + np.float32(self.setting("layer_norm_epsilon", 1e-5)))
        normed: Floats = scaled * self.get(f"{name}.weight") + self.get(f"{name}.bias")
        return normed

    def attention(self, x: Floats, name: str) -> Floats:
        """(T, C) to (T, C)."""
        q, k, v = np.split(self.linear(x, f"{name}c_attn"), 3, axis=-1)
        heads = self.config["n_head"]
        found = attend(split_heads(q, heads), split_heads(k, heads), split_heads(v, heads), None)
        return self.linear(found, f"{name}c_proj")

    def mlp(self, x: Floats, name: str) -> Floats:
        """(T, C) to (T, C)."""
        act = ACTIVATIONS[self.setting("activation_function", "gelu_new")]
        return self.linear(act(self.linear(x, f"{name}c_fc")), f"{name}c_proj")


class _Rotary(_Decoder):
    def __init__(
        self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, interleaved: bool
    ) -> None:
        super().__init__(config, tensors)
        self.interleaved = interleaved
        self.heads = config["num_attention_heads"]
        self.kv_heads = self.setting("num_key_value_heads", self.heads)
        default = 128 if config["model_type"] == "qwen3" else config["hidden_size"] // self.heads
        self.head_size = self.setting("head_dim", default)
        self.eps = np.float32(
            self.setting("rms_norm_eps", 1e-5 if config["model_type"] == "arcee" else 1e-6)
        )
        self.nanochat = config["model_type"] == "nanochat"

    def logits(self, ids: NDArray[np.int64]) -> Floats:
        x = self.get("model.embed_tokens.weight")[ids]
        if self.nanochat:
            x = self.norm(x, None)
        angles = np.outer(np.arange(len(ids)), self.frequencies())  # (T, hs / 2)
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}."
            x = x + self.attention(self.norm(x, f"{name}input_layernorm"), layer, angles)
            x = x + self.mlp(self.norm(x, f"{name}post_attention_layernorm"), f"{name}mlp.")
        tied = self.setting("tie_word_embeddings", False)
        found = self.head(self.norm(x, "model.norm"), "model.embed_tokens.weight", tied=tied)
        cap = self.config.get("final_logit_softcapping", 15.0) if self.nanochat else None
        return np.float32(cap) * np.tanh(found / np.float32(cap)) if cap else found

    def norm(self, x: Floats, name: str | None) -> Floats:
        """RMS norm over the last axis; NanoChat's has no scale."""
        scaled: Floats = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + self.eps)
        return scaled if self.nanochat or name is None else scaled * self.get(f"{name}.weight")

    def attention(self, x: Floats, layer: int, angles: NDArray[np.float64]) -> Floats:
        """(T, C) to (T, C)."""
        name = f"model.layers.{layer}.self_attn."
        q = split_heads(self.linear(x, f"{name}q_proj"), self.heads)
        k = split_heads(self.linear(x, f"{name}k_proj"), self.kv_heads)
        v = split_heads(self.linear(x, f"{name}v_proj"), self.kv_heads)
        if self.config["model_type"] == "qwen3":
            q, k = self.norm(q, f"{name}q_norm"), self.norm(k, f"{name}k_norm")
        q, k = self.rotate(q, angles), self.rotate(k, angles)
        if self.nanochat:
            q, k = self.norm(q, None), self.norm(k, None)
        return self.linear(attend(q, k, v, self.window(layer)), f"{name}o_proj")

    def rotate(self, x: Floats, angles: NDArray[np.float64]) -> Floats:
        """Rotate pairs of numbers of x (heads, T, hs); NanoChat turns them the other way."""
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        sin = -sin if self.nanochat else sin
        half = self.head_size // 2
        first, second = (x[..., ::2], x[..., 1::2]) if self.interleaved else (
            x[..., :half], x[..., half:]
        )  # fmt: skip
        pair = [first * cos - second * sin, second * cos + first * sin]
        if self.interleaved:
            return np.stack(pair, axis=-1).reshape(x.shape)
        return np.concatenate(pair, axis=-1)

    def frequencies(self) -> NDArray[np.float64]:
        """Radians per position, (hs / 2,)."""
        table = self.config.get("rope_scaling") or self.config.get("rope_parameters") or {}
        theta = table.get("rope_theta") or self.config.get("rope_theta") or 10_000.0
        found: NDArray[np.float64] = theta ** -(np.arange(0, self.head_size, 2) / self.head_size)
        if table.get("rope_type", table.get("type")) != "llama3":
            return found
        length = (
            table.get("original_max_position_embeddings")
            or (self.config["max_position_embeddings"])
        )
        low, high = table["low_freq_factor"], table["high_freq_factor"]
        turns = length * found / (2 * math.pi)  # within the context of the first training
        keep = np.clip((turns - low) / (high - low), 0, 1)
        scaled: NDArray[np.float64] = found * (keep + (1 - keep) / table["factor"])
        return scaled

    def window(self, layer: int) -> int | None:
        """How many tokens a token sees, itself included; None for all."""
        config = self.config
        if config["model_type"] == "mistral":
            window: int | None = config.get("sliding_window", 4096)
            return window
        if not config["model_type"].startswith("qwen") or not config.get("use_sliding_window"):
            return None
        types = config.get("layer_types")
        slides = layer >= self.setting("max_window_layers", 28)
        if types is not None:
            slides = types[layer] == "sliding_attention"
        return self.setting("sliding_window", 4096) if slides else None

    def mlp(self, x: Floats, name: str) -> Floats:
        """(T, C) to (T, C)."""
        if self.nanochat:
            act = ACTIVATIONS[self.setting("hidden_act", "relu2")]
            return self.linear(act(self.linear(x, f"{name}fc1")), f"{name}fc2")
        if self.config["model_type"] == "arcee":
            act = ACTIVATIONS[self.setting("hidden_act", "relu2")]
            return self.linear(act(self.linear(x, f"{name}up_proj")), f"{name}down_proj")
        act = ACTIVATIONS[self.setting("hidden_act", "silu")]
        gated = act(self.linear(x, f"{name}gate_proj")) * self.linear(x, f"{name}up_proj")
        return self.linear(gated, f"{name}down_proj")


def split_heads(x: Floats, heads: int) -> Floats:
    """(T, heads * hs) to (heads, T, hs)."""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def attend(q: Floats, k: Floats, v: Floats, window: int | None) -> Floats:
    """Softmax of q k^T / sqrt(hs) over the past (Vaswani et al. 2017), times v.

    Args:
        q: (nh, T, hs).
        k: (nkv, T, hs), each for nh / nkv query heads.
        v: as k.
        window: how many of the last tokens are seen; None for all.

    Returns:
        (T, nh * hs).
    """
    heads, length, size = q.shape
    distance = np.subtract.outer(np.arange(length), np.arange(length))  # to the past: positive
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    found = np.empty((length, heads, size), np.float32)
    for head in range(heads):
        group = head * len(k) // heads
        scores = q[head] @ k[group].T / np.float32(math.sqrt(size))
        scores[hidden] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        found[:, head] = weights / weights.sum(-1, keepdims=True) @ v[group]
    return found.reshape(length, -1)


def _sigmoid(x: Floats) -> Floats:
    found: Floats = 0.5 * (1 + np.tanh(0.5 * x))
    return found


def _erf(x: Floats) -> Floats:
    found: Floats = np.vectorize(math.erf, otypes=[np.float32])(x)
    return found


def _gelu(x: Floats) -> Floats:
    return 0.5 * x * (1 + _erf(x / np.float32(math.sqrt(2))))


def _gelu_tanh(x: Floats) -> Floats:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    found: Floats = 0.5 * x * (1 + np.tanh(inner))
    return found


ACTIVATIONS: dict[str, Activation] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.square(np.maximum(x, 0)),
    "silu": lambda x: x * _sigmoid(x),
    "swish": lambda x: x * _sigmoid(x),
}
