"""The pages show real files: what docs/plugins.md prints is installed, used and tested here."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_the_plugin_of_the_page_installs_trains_and_passes_its_test(tmp_path: Path) -> None:
    project, target = tmp_path / "early-stop", tmp_path / "site"
    project.mkdir()
    pyproject, use = blocks("docs/plugins.md", "toml")
    plugin, test = blocks("docs/plugins.md", "python")
    (project / "pyproject.toml").write_text(pyproject)
    (project / "early_stop.py").write_text(plugin)
    (tmp_path / "test_early_stop.py").write_text(test)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    where = ["--no-build-isolation", "--target", str(target), str(project)]
    subprocess.run([*pip, *where], check=True)
    recipe = (ROOT / "recipes/shakespeare.toml").read_text() + "\n" + use
    (tmp_path / "recipe.toml").write_text(recipe)

    def run(*command: str) -> str:
        environment = {"PYTHONPATH": str(target), "PATH": "", "GPTKIT_CACHE": str(tmp_path / "c")}
        command = (sys.executable, "-m", *command)
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "Evaluations to wait for a lower loss." in " ".join(
        run("gptkit", "plugins", "show", "early-stop").split()
    )
    run("pytest", "-q", "-p", "no:cacheprovider", "test_early_stop.py")
    complete = tomllib.loads(run("gptkit", "check", "recipe.toml"))
    assert complete["callbacks"][-1] == {"use": "early-stop", "patience": 5}


def test_every_file_that_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"\b(?:recipes|docs|benchmarks)/[\w./-]+\.(?:toml|md|py)\b", text):
        assert (ROOT / name).is_file(), name
    tree = re.findall(r"^  ([a-z_]+\.py) ", text, flags=re.MULTILINE)
    modules = {path.name for path in (ROOT / "gptkit").glob("*.py") if "__" not in path.name}
    assert set(tree) == modules


def test_the_readme_shows_the_recipe_as_it_is() -> None:
    assert (ROOT / "recipes/shakespeare.toml").read_text() in blocks("README.md", "toml")
