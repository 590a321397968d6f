"""The model of some benchmarks: SmolLM2, or a tiny one to see that they run."""

from pathlib import Path
from typing import Any

import gptkit
from tests import support

NAME = "SmolLM2-135M-Instruct"
TINY: dict[str, Any] = {
    "dataset": {"use": "text", "tokenizer": "byte", "block_size": 128},
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 64, "norm": "rmsnorm", "position": "rotary",
              "mlp": "swiglu", "bias": False},
    "train": {"steps": 1, "batch_size": 1, "eval_batches": 1, "device": "cpu"},
}  # fmt: skip


def find(folder: Path, *, quick: bool) -> tuple[str, Path]:
    """A model's name and its GGUF file; a tiny one, trained for a step, is written to a folder."""
    if not quick:
        return NAME, support.smollm2()
    run = gptkit.train(TINY, out=folder / "tiny", quiet=True)
    return "a tiny model", run.export(folder / "tiny.gguf", to="gguf")
