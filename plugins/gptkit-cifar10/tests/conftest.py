"""Fixtures of this plugin's tests: a private cache, and image files to read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that plugins cache in, instead of the user's."""
    monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def image_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes an image file of random pixels; another seed, other pixels."""

    def write(name: str = "image.png", *, size: int = 4, seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(256, size=(size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def image_folder(image_file: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of random images, `counts` by the class's path: `{"train/cat": 3}`."""

    def write(counts: dict[str, int], *, size: int = 4) -> Path:
        for place, count in counts.items():
            (tmp_path / "images" / place).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                seed = sum(place.encode()) * 1000 + number
                image_file(f"images/{place}/{number:03}.png", size=size, seed=seed)
        return tmp_path / "images"

    return write
