"""Fixtures for all tests: a private cache, a tiny recipe, the real command line."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w

TINY: dict[str, Any] = {
    "seed": 1,
    "dataset": {"use": "char-text", "block_size": 16},
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 16},
    "train": {"steps": 4, "batch_size": 4, "eval_every": 2, "eval_batches": 1, "device": "cpu"},
    "callbacks": [{"use": "lr-decay"}, {"use": "grad-clip"}, {"use": "log", "sample_tokens": 8}],
}
"""A recipe that trains in a fraction of a second."""


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that plugins cache in, instead of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTKIT_CACHE", str(folder))
        yield folder


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes `tiny.toml`; keywords update the tables of `TINY` and replace everything else."""

    def write(**changes: Any) -> Path:
        recipe = dict(TINY)
        for key, value in changes.items():
            recipe[key] = TINY[key] | value if isinstance(TINY.get(key), dict) else value
        path = tmp_path / "tiny.toml"
        path.write_text(tomli_w.dumps(recipe), encoding="utf-8")
        return path

    return write


@pytest.fixture
def gptkit(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `gptkit ARGS` as a real process in tmp_path; `env` is added to this process's own."""

    def call(
        *args: object, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gptkit", *map(str, args)]
        settings: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True}
        settings |= {"check": False, "timeout": 120} | options
        return subprocess.run(command, env=os.environ | dict(env or {}), **settings)

    return call
