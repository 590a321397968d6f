"""Other ways to draw from the same GPT with onnxruntime, and transformers' own."""

import importlib.util
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from gptkit.model.gpt import GPT
from gptkit.onnx.export.foreign_configs import genai_config
from gptkit.onnx.runtime.decode_session import STEP_FILE
from gptkit.onnx.runtime.providers import open_session
from gptkit.recipe.options import GPTConfig
from gptkit.sampling.rule import SamplingOptions, choose, uniforms

TRACED, GENAI, OPTIMUM = "torch.onnx.export, Python loop", "onnxruntime-genai", "optimum"
MODULES = {TRACED: "onnxscript", GENAI: "onnxruntime_genai", OPTIMUM: "optimum.onnxruntime"}


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


AVAILABLE = {name: _there(module) for name, module in MODULES.items()}
"""Which routes can be measured here."""


def draw_transformers(model: Any, batch: int, tokens: int) -> None:
    """`generate` as its users call it."""
    prompt = torch.zeros(batch, 1, dtype=torch.int64)
    model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=True,
        temperature=0.8, top_k=0, use_cache=True, pad_token_id=0,
    )  # fmt: skip


def routes(
    folder: Path, model: GPT, batch: int, number: int, tokens: int, sampling: SamplingOptions
) -> dict[str, Callable[[], Any]]:
    """The other onnxruntime routes that are installed."""
    found: dict[str, Callable[[], Any]] = {}
    if AVAILABLE[TRACED]:
        file = folder / "traced.onnx"
        _trace(model, file)
        found[TRACED] = stepping(file, model.config, batch, tokens, sampling, traced=True)
    if AVAILABLE[GENAI]:
        found[GENAI] = _genai(folder / "float32", model.config, batch, number, tokens)
    return found


def stepping(
    file: Path,
    config: GPTConfig,
    batch: int,
    tokens: int,
    sampling: SamplingOptions,
    *,
    traced: bool = False,
) -> Callable[[], Any]:
    """A Python loop over a graph of one step, with numpy's sampler."""
    session = open_session(file, "cpu")
    names = [x.name for x in session.get_inputs() if x.name.startswith("past_key_values.")]
    empty = np.zeros((batch, config.kv_heads, 0, config.head_size), np.float32)

    def draw() -> None:
        ids, past = np.zeros((batch, 1), np.int64), dict.fromkeys(names, empty)
        for i in range(tokens):
            feeds: dict[str, NDArray[Any]] = {"input_ids": ids, **past}
            if not traced:
                feeds["attention_mask"] = np.ones((batch, i + 1), np.int64)
                feeds["position_ids"] = np.full((batch, 1), i)
            logits, *present = session.run(None, feeds)
            ids = choose(logits[:, -1], uniforms(sampling.seed, i, batch), sampling)[:, None]
            past = dict(zip(names, present, strict=True))

    return draw


class _Traceable(nn.Module):
    """A GPT whose step has tensors only, and no branches."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, T, vocab_size) and the present."""
        model, present = self.model, list(past)
        T, P = ids.size(1), past[0].size(2)
        positions = torch.arange(P, P + T)
        mask = torch.arange(P + T)[None, :] <= positions[:, None]
        x = model.wte(ids) + model.position.wpe(positions)
        for i, block in enumerate(model.h):
            q, k, v = (
                part.unflatten(-1, (-1, model.config.head_size)).transpose(1, 2)
                for part in block.attn.qkv(block.ln_1(x)).chunk(3, dim=-1)
            )
            k, v = torch.cat((past[2 * i], k), 2), torch.cat((past[2 * i + 1], v), 2)
            present[2 * i : 2 * i + 2] = [k, v]
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + block.attn.proj(y.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.ln_2(x))
        return model.lm_head(model.ln_f(x)), present


def _trace(model: GPT, file: Path) -> None:
    """Export with torch's own exporter, for any batch, length and past."""
    config = model.config
    past = [torch.zeros(2, config.n_head, 5, config.head_size)] * (2 * config.n_layer)
    batch, new, old = (torch.export.Dim(name) for name in ("batch", "new", "old"))
    parts = [f"{i}.{kind}" for i in range(config.n_layer) for kind in ("key", "value")]
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            _Traceable(model).eval(), (torch.zeros(2, 3, dtype=torch.int64), past), str(file),
            dynamo=True, opset_version=23, external_data=False, verbose=False,
            input_names=["input_ids", *(f"past_key_values.{part}" for part in parts)],
            output_names=["logits", *(f"present.{part}" for part in parts)],
            dynamic_shapes={"ids": {0: batch, 1: new}, "past": [{0: batch, 2: old} for _ in past]},
        )  # fmt: skip


def _genai(
    bundle: Path, config: GPTConfig, batch: int, number: int, tokens: int
) -> Callable[[], Any]:
    """onnxruntime-genai's own loop over our step graph."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime_genai as genai

    described = genai_config(
        config,
        start=0,
        stop_tokens=(),
        rarest=config.vocab_size - 1,
        temperature=0.8,
        device="cpu",
    )
    described["model"]["decoder"]["session_options"]["intra_op_num_threads"] = number
    (bundle / "genai_config.json").write_text(json.dumps(described), encoding="utf-8")
    assert (bundle / STEP_FILE).is_file()
    model = genai.Model(str(bundle))

    def draw() -> None:
        params = genai.GeneratorParams(model)
        params.set_search_options(
            max_length=tokens + 1, min_length=tokens + 1, do_sample=True, temperature=0.8,
            batch_size=batch,
        )  # fmt: skip
        generator = genai.Generator(model, params)
        generator.append_tokens(np.zeros((batch, 1), np.int32))
        while not generator.is_done():
            generator.generate_next_token()

    return draw
