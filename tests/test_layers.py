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

UNSAFE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}

TORCH_FREE = [
    "codec", "errors", "files", "loading",
    "onnx.graphs.text", "recipe.options", "recipe.recipe", "recipe.registry",
    "engine", "sampling.decoded", "sampling.each", "sampling.generate", "sampling.model",
    "sampling.output", "sampling.prompts", "sampling.rule", "sampling.samples", "sampling.stops",
    "sampling.threads",
    "runs.checkpoint", "runs.run_folder", "runs.signals", "runs.weights", "training.torchrun",
    "scaffold.package", "show.plugins", "show.runs", "show.samples",
    *(f"onnx.runtime.{p.stem}" for p in sorted((ROOT / "gptkit/onnx/runtime").glob("[!_]*.py"))),
]  # fmt: skip
"""Modules that work without torch: a checkpoint's folder is listed, an exported model runs."""

TELL_MODULES = """
import atexit, sys
from gptkit.cli.app import main
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
main()
"""

Place = tuple[int, str, int]
"""Floor, folder, and position in the folder's line."""


def read_floors() -> dict[str, Place]:
    """The places of all modules by dotted name, from the list in docs/architecture.md."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    found = re.search(r"^floor +folder +modules, lowest first\n(.*?)^```", page, re.M | re.S)
    assert found
    places = {}
    for line in found[1].splitlines():
        floor, folder, modules = line.split(maxsplit=2)
        for position, group in enumerate(modules.split("<")):
            for module in group.split(","):
                prefix = "" if folder == "." else folder.replace("/", ".") + "."
                places[prefix + module.strip()] = (int(floor), folder, position)
    return places


FLOORS = read_floors()


def imports(path: Path) -> Iterator[str]:
    """Everything that a file imports, anywhere in it, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path: Path) -> str:
    """The dotted name of a file below gptkit/."""
    return ".".join(path.relative_to(ROOT / "gptkit").with_suffix("").parts)


MODULES = {module_of(path): path for path in CORE if path.name != "__init__.py"}


def used_modules(path: Path) -> Iterator[str]:
    """The modules of gptkit that a file imports."""
    for dotted in imports(path):
        name = dotted.removeprefix("gptkit.")
        if name != dotted and name != "__version__":
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            assert name, f"{path} imports {dotted}, which is no module"
            yield name


def may_import(own: Place, used: Place) -> bool:
    return used[0] < own[0] or (used[:2] == own[:2] and used[2] < own[2])


def test_every_module_has_a_floor() -> None:
    assert set(MODULES) == set(FLOORS)
    assert len({place[0] for place in FLOORS.values()}) > 10


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_lower_floors(module: str) -> None:
    for used in used_modules(MODULES[module]):
        if used != module:
            assert may_import(FLOORS[module], FLOORS[used]), f"{module} must not import {used}"


def test_a_package_is_empty_but_for_its_description() -> None:
    for path in CORE:
        if path.name == "__init__.py" and path.parent != ROOT / "gptkit":
            (statement,) = ast.parse(path.read_text(encoding="utf-8")).body
            assert isinstance(statement, ast.Expr), path


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
        found = {i for i in imports(path) if i.split(".")[0] == "gptkit"}
        used = {i.rpartition(".")[0] for i in found - {"gptkit"}}  # a command uses the public API
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


def test_what_works_without_torch_imports_none() -> None:
    """In a process for each module, so that nothing that it imports does either."""
    program = "import sys, gptkit.{0}; sys.exit('torch' in sys.modules and '{0} imports torch')"
    running = [
        subprocess.Popen([sys.executable, "-c", program.format(module)], stderr=subprocess.PIPE)
        for module in TORCH_FREE
    ]
    said = [process.communicate()[1].decode() for process in running]
    assert "".join(said) == ""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["plugins", "list"]], ids=" ".join
)
def test_light_commands_import_neither_torch_nor_a_plugin(
    arguments: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", TELL_MODULES, *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "gptkit.cli.app" in result.stderr.split()
    packages = {name.partition(".")[0] for name in result.stderr.split()}
    assert not packages & {"torch", *(path.parent.name for path in PLUGINS)}
