"""Models that no rank has the memory for: the system refuses every rank more than the bound."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

if sys.platform != "linux":
    pytest.skip("RLIMIT_DATA bounds all memory on Linux alone", allow_module_level=True)

PLUGIN = '''
import os
import re
import resource
from pathlib import Path

import torch
from gptkit.plugin import Callback

with torch.device("meta"):  # imports what torch needs for FSDP2
    import torch.distributed.fsdp
    import torch.distributed.tensor
    torch.nn.Linear(2, 2)
torch.ones(2).requires_grad_().sum().backward()  # starts torch's threads


class Bound(Callback):
    """Bounds this process's memory to what it has already and some more."""

    contract = 1

    def model_post_init(self, context):
        found = re.search(r"VmData:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
        bound = int(found[1]) * 1024 + int(os.environ["BOUND"])
        resource.setrlimit(resource.RLIMIT_DATA, (bound, resource.RLIM_INFINITY))
'''
RECIPE: dict[str, Any] = {
    "dataset": {"use": "char-text", "path": "text.txt", "block_size": 8},
    "model": {
        "n_layer": 72, "n_head": 2, "n_embd": 64, "n_inner": 16384, "bias": False,
        "position": "rotary",
    },
    "train": {
        "steps": 2, "batch_size": 4, "eval_every": 1, "eval_batches": 1, "device": "cpu",
        "dtype": "float32", "optimizer": {"use": "muon"},
    },
    "callbacks": [{"use": "bound"}, {"use": "log", "every": 1, "sample_tokens": 0}],
}  # fmt: skip
WEIGHTS = 4 * 152_000_000  # bytes, of at least 12 per parameter in a training
BOUNDS = {4: int(1.25 * WEIGHTS), 2: int(1.9 * WEIGHTS)}
"""Bytes beside Python and torch, by the number of ranks: 12 per parameter, divided, and a block."""


class Workshop:
    """A folder in which processes train the recipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        info = folder / "site" / "bound-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / "site" / "bound.py").write_text(PLUGIN)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bound\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[gptkit.callbacks]\nbound = bound:Bound\n")
        (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 50)
        (folder / "recipe.toml").write_text(tomli_w.dumps(RECIPE))

    def gptkit(
        self, *args: str, ranks: int = 1, more: int = 1 << 40
    ) -> subprocess.CompletedProcess[str]:
        """A command, in which every rank may have so many more bytes than at its start."""
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        env = {"PYTHONPATH": str(self.folder / "site"), "OMP_NUM_THREADS": "1", "BOUND": str(more)}
        return subprocess.run(
            [sys.executable, *(launcher if ranks > 1 else []), "-m", "gptkit", *args],
            cwd=self.folder, text=True, capture_output=True, check=False,
            env=os.environ | env,
        )  # fmt: skip

    def losses(self, run: str) -> list[float]:
        """Of the steps and the evaluations of a run."""
        lines = (self.folder / run / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return [record[key] for record in records for key in ("loss", "val_loss") if key in record]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("larger"))


@pytest.fixture(scope="module")
def alone(workshop: Workshop) -> list[float]:
    """The losses of a single process with as much memory as it likes."""
    done = workshop.gptkit("train", "recipe.toml", "--out", "alone")
    assert done.returncode == 0, done.stderr
    return workshop.losses("alone")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("ranks", BOUNDS)
def test_ranks_train_save_and_resume_a_model_that_none_of_them_could_hold(
    ranks: int, alone: list[float], workshop: Workshop
) -> None:
    """Each has less memory than the weights with their gradients take, not counting the moments."""
    more, run = BOUNDS[ranks], f"by-{ranks}"
    refused = workshop.gptkit("train", "recipe.toml", "--out", f"refused-{ranks}", more=more)
    assert refused.returncode == 1
    assert "error: too little memory for this training" in refused.stderr

    shard = ["--set", "train.shard=true", "--set", "train.steps=1"]
    done = workshop.gptkit("train", "recipe.toml", "--out", run, *shard, ranks=ranks, more=more)
    assert done.returncode == 0, done.stderr
    two = ["--set", "train.steps=2"]
    done = workshop.gptkit("resume", run, *two, ranks=ranks, more=more)
    assert done.returncode == 0, done.stderr
    assert workshop.losses(run) == pytest.approx(alone, abs=1e-5)
    drawn = [workshop.gptkit("sample", name, "--tokens", "9").stdout for name in (run, "alone")]
    assert len(drawn[0]) >= 9
    assert drawn[0] == drawn[1]
