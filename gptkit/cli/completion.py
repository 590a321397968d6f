"""What the shell offers for an argument: recipes, runs, exported models, names of plugins."""

from pathlib import Path

from gptkit.terminal import harmless

RUNS = "runs"


def recipes(incomplete: str) -> list[str]:
    """TOML files here and one folder down, or below the folder that is typed already."""
    found = _files("*.toml", incomplete)
    return [p for p in found if not p.startswith(f"{RUNS}/") and not p.endswith("pyproject.toml")]


def run_folders(incomplete: str) -> list[str]:
    """Run folders under runs/, or below the folder that is typed already."""
    folder = _typed_folder(incomplete)
    paths = [*folder.glob("*/recipe.toml"), *Path(RUNS).glob("*/recipe.toml")]
    return _matching([path.parent for path in paths], incomplete)


def models(incomplete: str) -> list[str]:
    """Run folders, and exported models."""
    return [*run_folders(incomplete), *_files("*.onnx", incomplete)]


def plugins(incomplete: str) -> list[str]:
    """The names of installed plugins."""
    from gptkit.recipe import registry

    names = dict.fromkeys(entry.name for entry in registry.all_installed())
    return [name for name in names if name.startswith(incomplete)]


def _files(pattern: str, incomplete: str) -> list[str]:
    folder = _typed_folder(incomplete)
    return _matching([*folder.glob(pattern), *folder.glob(f"*/{pattern}")], incomplete)


def _typed_folder(incomplete: str) -> Path:
    return Path(incomplete.rpartition("/")[0] + "/") if "/" in incomplete else Path()


def _matching(paths: list[Path], incomplete: str) -> list[str]:
    found = dict.fromkeys(path.as_posix() for path in sorted(paths))
    shown = [path for path in found if path == harmless(path, keep="")]
    return [path for path in shown if path.startswith(incomplete)]
