"""Fixtures: llama.cpp as the judge, and files for it."""

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptkit_gguf.names import layout
from gptkit_gguf.spelling import Spelling, spell
from gptkit_gguf.writer import write_file
from gptkit_text.codec import TokenizerCodec
from tests.support import node_program

VERSION = "3.21.1"
BINARIES = {("Linux", "x86_64"): "linux-x64", ("Linux", "aarch64"): "linux-arm64"}

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads per tiny matrix only wait

CONFIG = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 64, "tie_word_embeddings": True,
}  # fmt: skip
FIELDS = {
    "general.architecture": "llama", "llama.context_length": 64, "llama.embedding_length": 32,
    "llama.block_count": 1, "llama.feed_forward_length": 64, "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1, "llama.attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip

Llama = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    """Asks llama.cpp about a file: its tokens of `texts`, `count` greedy ones that follow `ids`."""
    binary = BINARIES.get((platform.system(), platform.machine()))
    if binary is None:
        pytest.skip("npm has no llama.cpp for this machine")
    packages = (f"node-llama-cpp@{VERSION}", f"@node-llama-cpp/{binary}@{VERSION}")
    script = Path(__file__).with_name("llama.mjs")
    folder = tmp_path_factory.mktemp("node")
    program = node_program(script, folder, *packages, "--omit=optional")  # not for GPUs

    def ask(file: Path, **request: Any) -> dict[str, Any]:
        (found,) = program(json.dumps([{"file": str(file), **request}]))
        assert "error" not in found, found
        return dict(found)

    return ask


@pytest.fixture
def tiny_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny Llama with random weights and a tokenizer; by default of single bytes."""

    def write(spelling: Spelling | None = None, **fields: Any) -> Path:
        path = tmp_path / "tiny.gguf"
        spelling = spelling or spell(TokenizerCodec(tokenizer="", end=256), 257)
        places = layout({**CONFIG, "vocab_size": len(spelling.tokens)})
        random = torch.Generator().manual_seed(0)
        tensors = {n: torch.randn(place.shape, generator=random) for n, place in places.items()}
        fields = {key: value for key, value in (FIELDS | fields).items() if value is not None}
        write_file(
            path, fields=fields, spelling=spelling, places=places, tensors=tensors, factors=None,
            dtype="f32",
        )  # fmt: skip
        return path

    return write
