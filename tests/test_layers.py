"""The floors: who may import whom, what is never imported at all, and what starts cheaply."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "gptkit").rglob("*.py"))
PLUGINS = sorted(p for p in (ROOT / "plugins").rglob("*.py") if p.parent.name != "tests")
PLUGIN_TESTS = sorted(p for p in (ROOT / "plugins").rglob("*.py") if p.parent.name == "tests")

FLOORS = [
    {"gptkit", "errors"},
    {"config", "codec", "download"},
    {"blocks"},
    {"plugin", "recipe", "model", "step_folder"},
    {
        "registry", "data", "optimizer", "device", "parallel", "checkpoint", "sampler", "testing",
        "decoder", "drawing",
    },
    {"folder", "sharding"},
    {"snapshot", "finite"},
    {"trainer", "generate"},
    {"trained"},
    {"run", "onnx", "measure", "skeleton"},
    {"doctor"},
    {"show"},
    {"cli"},
    {"__main__"},
]  # fmt: skip
"""The rooms by floor, lowest first; `gptkit` is the package itself, which holds the version."""

UNSAFE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}

TELL_MODULES = """
import atexit, sys
from gptkit.cli.app import main
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
main()
"""


def imports(path: Path) -> Iterator[str]:
    """Everything that a file imports, anywhere in it, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(dotted: str) -> str:
    """The module of gptkit that a dotted name belongs to; a subpackage is one room."""
    first = dotted.split(".")[1] if "." in dotted else ""
    exists = (ROOT / "gptkit" / f"{first}.py").exists() or (ROOT / "gptkit" / first).is_dir()
    return first if first and exists else "gptkit"


def own_room(path: Path) -> str:
    parts = path.relative_to(ROOT / "gptkit").with_suffix("").parts
    return "gptkit" if parts == ("__init__",) else parts[0]


def floor(name: str) -> int:
    found = [i for i, rooms in enumerate(FLOORS) if name in rooms]
    assert found, f"gptkit.{name} has no floor yet: argue for one in FLOORS"
    return found[0]


@pytest.mark.parametrize("path", CORE, ids=own_room)
def test_a_module_imports_only_from_lower_floors(path: Path) -> None:
    own = own_room(path)
    for dotted in imports(path):
        if dotted.partition(".")[0] == "gptkit" and (used := room(dotted)) != own:
            assert floor(used) < floor(own), f"{own} must not import {used}"


def test_core_names_no_plugin() -> None:
    packages = {path.parent.name for path in PLUGINS}
    assert packages
    assert not [(path, i) for path in CORE for i in imports(path) if i.split(".")[0] in packages]


@pytest.mark.parametrize(
    ("paths", "allowed"),
    [
        (PLUGINS, {"gptkit.plugin", "gptkit.codec"}),
        (PLUGIN_TESTS, {"gptkit.plugin", "gptkit.codec", "gptkit.testing"}),
    ],
    ids=["plugins", "tests"],
)
def test_plugins_import_the_contract_alone(paths: list[Path], allowed: set[str]) -> None:
    assert paths
    for path in paths:
        used = {i.rpartition(".")[0] for i in imports(path) if i.split(".")[0] == "gptkit"}
        assert used <= allowed, path


def test_nothing_is_ever_unpickled() -> None:
    for path in [*CORE, *PLUGINS]:
        assert not {i.split(".")[0] for i in imports(path)} & UNSAFE, path
        assert not {"torch.load", "torch.save"} & set(imports(path)), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called, keywords = ast.unparse(node.func), {k.arg for k in node.keywords}
                assert called not in {"torch.load", "torch.save"}, f"{path}:{node.lineno}"
                assert "allow_pickle" not in keywords, f"{path}:{node.lineno}"


def test_there_are_no_circles_to_hide() -> None:
    for path in [*CORE, *PLUGINS]:
        assert not re.search(r"\bTYPE_CHECKING\b", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("module", ["codec", "config", "errors", "recipe", "registry", "sampler"])
def test_what_works_without_torch_says_so(module: str) -> None:
    assert not [i for i in imports(ROOT / "gptkit" / f"{module}.py") if i.startswith("torch")]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["plugins", "list"]], ids=" ".join
)
def test_light_commands_import_neither_torch_nor_a_plugin(
    arguments: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", TELL_MODULES, *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "gptkit.cli" in result.stderr.split()
    packages = {name.partition(".")[0] for name in result.stderr.split()}
    assert not packages & {"torch", *(path.parent.name for path in PLUGINS)}
