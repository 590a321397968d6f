"""`gptkit plugins new`: what it writes is installed, checked, tested and trained, as it is."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w
from typer.testing import Result

from tests.support import execute

Cli = Callable[..., Result]


@pytest.mark.parametrize("kind", ["callback", pytest.param("dataset", marks=pytest.mark.slow)])
def test_a_new_plugin_works(kind: str, cli: Cli, tmp_path: Path) -> None:
    result = cli("plugins", "new", "acme-thing2", "--kind", kind)
    assert (result.exit_code, result.stdout) == (0, "acme-thing2\n")
    project, target = tmp_path / "acme-thing2", tmp_path / "site"
    assert {path.name for path in tmp_path.iterdir()} == {"acme-thing2"}

    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    execute(*pip, "--no-build-isolation", "--target", target, project)
    environment = os.environ | {"PYTHONPATH": str(target)}

    def run(*command: object) -> str:
        return execute(sys.executable, "-m", *command, cwd=tmp_path, env=environment)

    assert "acme-thing2" in run("gptkit", "plugins", "check", "acme-thing2")
    assert "2 passed" in run("pytest", "-p", "no:cacheprovider", project)
    (tmp_path / "file").write_bytes(bytes(range(256)) * 8)
    recipe = {
        "seed": 1, "dataset": {"use": "char-text", "block_size": 8},
        "model": {"n_layer": 1, "n_head": 1, "n_embd": 8},
        "train": {"steps": 4, "batch_size": 2, "eval_every": 2, "eval_batches": 1},
    }  # fmt: skip
    if kind == "callback":
        recipe["callbacks"] = [{"use": "acme-thing2", "val_loss": 100.0}]
    else:
        recipe["dataset"] = {"use": "acme-thing2", "path": "file", "block_size": 8}
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(recipe))
    run("gptkit", "train", "recipe.toml", "--out", "r")
    steps = [path.name for path in sorted((tmp_path / "r/checkpoints").glob("step-*"))]
    assert steps[-1] == ("step-00000002" if kind == "callback" else "step-00000004")
    if kind == "dataset":
        run("gptkit", "export", "r", "--onnx")
        asked = ("--prompt", "a", "--tokens", 9, "--ids", "--device", "cpu")
        drawn = run("gptkit", "sample", "r", *asked)
        assert drawn.startswith("97 ")
        assert run("gptkit", "sample", "model.onnx", *asked) == drawn


@pytest.mark.slow
def test_what_is_written_is_formatted_and_typed(cli: Cli, tmp_path: Path) -> None:
    for name, kind in (("a-callback", "callback"), ("bytes-of-my-files", "dataset")):
        cli("plugins", "new", name, "--kind", kind)
        files = sorted((tmp_path / name).glob("*.py"))
        execute("ruff", "check", "--isolated", "--select", "E,F,I,UP,B", cwd=tmp_path / name)
        execute("ruff", "format", "--isolated", "--diff", cwd=tmp_path / name)
        execute("mypy", "--strict", "--config-file", os.devnull, *files, cwd=tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["Acme"], "Acme: not a plugin's name"),
        (["acme_thing"], "not a plugin's name"),
        (["../acme"], "not a plugin's name"),
        ([""], "not a plugin's name"),
        (["json"], "json: the name of a Python module or keyword"),
        (["class"], "class: the name of a Python module or keyword"),
        (["grad-clip"], "has that name"),
        (["acme", "--kind", "codec"], 'no kind "codec"'),
        (["acme", "--out", "there"], "there: already exists"),
    ],
)
def test_a_mistake_writes_nothing(
    arguments: list[str], fault: str, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    result = cli("plugins", "new", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert fault in result.stderr
    assert "hint:  " in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_folder_that_cannot_be_written_is_named(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = cli("plugins", "new", "acme", "--out", "file/acme")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "file/acme: cannot be written: " in result.stderr


def test_no_command_of_the_scaffold_imports_torch(tmp_path: Path) -> None:
    code = "import sys; from gptkit.scaffold import package; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
