"""Fixtures for all tests: a private cache, a tiny recipe, the command line, made-up plugins."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner, Result

from gptkit.cli.app import app
from tests import support

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job and its children
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
    signal.signal(signal.SIGHUP, lambda *_: None)  # ignored by the tests, not by their children
os.environ["OMP_NUM_THREADS"] = "1"  # before torch starts: two threads per tiny matrix only wait

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


@pytest.fixture(scope="session")
def downloaded() -> Callable[..., Path]:
    """Fills a folder with what npm and pip download, once per user; its name has the versions."""

    def folder(name: str, fill: Callable[[Path], None]) -> Path:
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed")
        return support.downloaded(name, fill)

    return folder


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes `tiny.toml`; a keyword updates a table of `TINY`, or replaces what it names anew."""

    def write(**changes: Any) -> Path:
        recipe = dict(TINY)
        for key, value in changes.items():
            updates = isinstance(TINY.get(key), dict) and "use" not in value
            recipe[key] = TINY[key] | value if updates else value
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


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `gptkit ARGS` inside this process, in tmp_path; an exception is a bug and comes out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*args: object) -> Result:
        return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)

    return call


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Makes up an installed distribution of one module; gives the folder that a path needs."""
    before = set(sys.modules)

    def install(name: str, source: str, **entries: str) -> Path:
        """`entries` are `KIND="NAME = Class"`, with KIND datasets, callbacks or codecs."""
        module = name.replace("-", "_")
        folder = tmp_path / "site" / name
        info = folder / f"{module}-1.2.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = [
            f"[gptkit.{kind}]\n{entry.replace('= ', f'= {module}:')}\n"
            for kind, entry in entries.items()
        ]
        (info / "entry_points.txt").write_text("".join(lines))
        monkeypatch.syspath_prepend(folder)
        return folder

    yield install
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
