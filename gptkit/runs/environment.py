"""The contents of environment.json: what a run was trained with."""

import platform
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import torch

from gptkit.plugin import Data
from gptkit.recipe.build import Plugins
from gptkit.runs import history
from gptkit.training.device import RunDevice
from gptkit.training.distributed import Ranks

PACKAGES = ("gptkit", "torch", "numpy", "pydantic", "safetensors")


def describe(plugins: Plugins, data: Data, run_device: RunDevice, ranks: Ranks) -> dict[str, Any]:
    """Format, recipe, versions, device and reasons, processes, plugins, digest of the data."""
    return {
        "format": history.FORMAT,
        "argv": sys.argv,
        "recipe": plugins.recipe.flat(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "platform": platform.platform(),
        "processes": ranks.size,
        "job": ranks.job,
        "threads": torch.get_num_threads(),
        "device": str(run_device.device),
        "dtype": run_device.dtype_name,
        "compile": run_device.compile,
        "reasons": run_device.reasons,
        "plugins": {f"{entry.kind} {entry.name}": entry.origin for entry in plugins.entries},
        "git_commit": _git_commit(),
        "data_sha256": data.sha256,
    }


def _git_commit() -> str | None:
    try:
        command = ["git", "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
