"""What is shipped beside the code works as it stands: recipes, and the documents' commands."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

from gptkit.cli.app import app
from gptkit.cli.commands import PluginCommand
from gptkit.recipe import build
from gptkit.recipe.recipe import Recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
FIRST_PARTY = {path.name for path in (ROOT / "plugins").iterdir() if path.is_dir()}
DOCUMENTS = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("plugins/*/README.md")]
SHIPPED = r"(?<![\w/.-])(?:requirements[\w-]*\.txt|(?:recipes|docs|benchmarks|tests)/[\w./-]+)"
"""Names in this repository that a document may mention; what a user makes is called otherwise."""


def fenced(path: Path, *kinds: str) -> list[str]:
    """A document's fenced blocks of some kinds; "" is a block that says none."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [text for kind, text in blocks if kind in kinds]


def commands(path: Path) -> list[list[str]]:
    """The `gptkit` commands of a document's shell blocks, as arguments; not those refused there."""
    text = "\n".join(fenced(path, "sh", "bash", "console", "")).replace("\\\n", " ")
    text = re.sub(r"^\$ .*\nerror: .*$", "", text, flags=re.MULTILINE)
    lines = re.findall(r"^(?:\$ )?(.*\bgptkit .*)$", text, re.MULTILINE)
    parts = [part for line in lines for part in re.split(r"&&|;|\|", line.partition("#")[0])]
    return [shlex.split(part)[1:] for part in parts if part.split()[:1] == ["gptkit"]]


@pytest.fixture(params=RECIPES, ids=lambda path: path.name)
def recipe(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_a_recipe_is_valid_and_complete_when_built(recipe: Path, tmp_path: Path) -> None:
    built = build.build(build.read(recipe))
    (tmp_path / "complete.toml").write_text(built.recipe.to_toml(), encoding="utf-8")
    assert build.build(build.read(tmp_path / "complete.toml")).recipe == built.recipe
    assert {entry.distribution for entry in built.entries} <= FIRST_PARTY


def test_a_recipe_opens_with_the_command_that_runs_it(recipe: Path) -> None:
    comment = re.match(r"(?:#.*\n)+", recipe.read_text("utf-8"))
    assert comment
    assert f"gptkit train {name(recipe)}" in comment[0]


def test_a_recipe_says_only_what_a_reader_needs(recipe: Path) -> None:
    text = recipe.read_text("utf-8")
    assert max(map(len, text.splitlines())) <= 100
    tables = re.findall(r"^\[+(\w+)", text, re.MULTILINE)
    assert tables == sorted(tables, key=list(Recipe.model_fields).index)


def test_two_commands_do_all_the_setting_up() -> None:
    blocks = [block.strip() for block in fenced(ROOT / "README.md", "sh", "bash")]
    main = "pip install -r requirements.txt && gptkit train recipes/shakespeare.toml"
    assert main in blocks
    assert ROOT / "recipes/shakespeare.toml" in RECIPES
    assert "pip install -r requirements-dev.txt && pytest" in blocks


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_a_document_names_only_files_that_exist(document: Path) -> None:
    mentioned = set(re.findall(SHIPPED, document.read_text("utf-8")))
    missing = [m for m in mentioned if not (ROOT / m.rstrip(".")).exists()]
    missing = [m for m in missing if not (document.parent / m.rstrip(".")).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_a_documents_commands_exist_with_their_options(document: Path) -> None:
    for arguments in commands(document):
        command = typer.main.get_command(app)
        context = command.make_context("gptkit", ["--version"], resilient_parsing=True)
        while isinstance(command, TyperGroup) and arguments[:1] and arguments[0][0] != "-":
            found = command.get_command(context, arguments[0])
            assert found, f"{name(document)}: gptkit {' '.join(arguments)}"
            command, arguments = found, arguments[1:]
        if isinstance(command, PluginCommand):  # the plugin has its options
            command = command.make_context("gptkit", [], resilient_parsing=True).command
        known = {option for parameter in command.params for option in parameter.opts}
        used = {
            argument.partition("=")[0] for argument in arguments if argument[:1] == "-" != argument
        }
        assert used <= known | {"-h", "--help"}, f"{name(document)}: {arguments}"
