"""What a training uses of its device: FLOPs, their share of the peak, and memory."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gptkit.model import cpu
from gptkit.model.gpt import GPT
from gptkit.recipe.options import GPTConfig, TrainOptions
from gptkit.recipe.sizes import flops_per_token
from gptkit.runs.train import train
from gptkit.training.device import resolve_device
from gptkit.training.usage import Usage, measure_peak

CPU = resolve_device(TrainOptions(device="cpu", dtype="float32"))
SHAPES: list[dict[str, Any]] = [
    {},
    {"tie_embeddings": False},
    {"position": "rotary", "tie_embeddings": False, "n_kv_head": 1, "mlp": "swiglu"},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_flops_are_those_that_torch_counts(
    shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_has_onednn", lambda: False)  # whose products torch does not count
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 64, "bias": False}
    config = GPTConfig(**sizes | shape, vocab_size=50, block_size=32)
    model, x = GPT(config), torch.zeros(2, 32, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(x, x).backward()
    attention = 12 * config.n_layer * config.n_embd * config.block_size
    norms = 5 * config.n_embd  # vectors, which multiply no matrix
    assert (flops_per_token(config) - attention - 6 * norms) * 64 == sum(
        flops
        for operator, flops in counter.get_flop_counts()["Global"].items()
        if "attention" not in str(operator)
    )


def test_the_share_is_of_the_peak_of_all_processes() -> None:
    config = GPTConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=4, block_size=4)
    usage = Usage(config, CPU, processes=4)
    usage.peak = 1000.0 * flops_per_token(config)
    assert usage(1000.0)["mfu"] == 0.25
    assert "mfu" not in usage(None)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 1.0),
        ("NVIDIA T4", 1.0),
    ],
)
def test_the_peak_of_a_known_gpu_is_its_makers(
    name: str, peak: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr("gptkit.training.usage.measure_peak", lambda *_: 1.0)
    config = GPTConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=4, block_size=4)
    on_gpu = replace(CPU, device=torch.device("cuda:1"), dtype=torch.bfloat16)
    assert Usage(config, on_gpu).peak == peak


def test_a_peak_is_that_of_a_product_which_takes_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]

    def product(matrix: torch.Tensor) -> float:
        now[0] += 1
        return len(matrix) ** 3 / 1e12 * (1 + now[0] % 3)  # the clock is not the same each time

    monkeypatch.setattr("gptkit.training.usage._seconds", product)
    assert measure_peak(torch.device("cpu"), torch.float32) == pytest.approx(2e12)
    assert 10 < now[0] < 40


def test_a_training_logs_its_share_of_the_peak_and_its_memory(
    tiny_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny_recipe(train={"device": "cpu"}), out=tmp_path / "r", report=print)
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "loss" in record]
    assert all(0 < record["mfu"] < 1.2 for record in records)
    status = Path("/proc/self/status").read_text()
    peak = int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) / 1000 * 1.024
    memory = [record["memory_mb"] for record in records]
    assert memory == sorted(memory)
    assert memory[-1] == pytest.approx(peak, rel=0.2)
    assert re.search(r"tok/s  mfu \d+%  [\d,]+ MB  eta", capsys.readouterr().err)
