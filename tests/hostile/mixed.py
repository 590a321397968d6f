"""An area: cases of all areas that need no process of their own."""

from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile.harness import Case

AREAS = [
    "caches", "data_files", "exports", "recipes", "run_folders", "sets", "sizes", "step_folders",
]  # fmt: skip


def prepare(base: Path) -> None:
    """The good files of every area."""
    for area in AREAS:
        (base / area).mkdir()
        _module(area).prepare(base / area)


def case(random: Random, base: Path, folder: Path) -> Case:
    """A case of one of them."""
    area = random.choice(AREAS)
    made: Case = _module(area).case(random, base / area, folder)
    return made


def _module(area: str) -> Any:
    return import_module(f"tests.hostile.{area}")
