"""The tokens of a text: encoded once, then cached under the text's digest."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gptkit.plugin import DataError, cache_errors, cache_folder, cached
from gptkit_char_text.text import CODE_POINTS, TextStats, chunks, code_points, text_digest


def cached_stats(files: Sequence[Path]) -> TextStats | None:
    """What `scan` would give, from the cache; None if the text is not in the cache.

    Raises:
        DataError: a file cannot be read.
    """
    sha256 = text_digest(files)
    try:
        meta = json.loads((_folder(sha256) / "meta.json").read_bytes())
        text = TextStats(sha256, meta["vocabulary"], meta["characters"])
        return text if _is_complete(text) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def encoded(files: Sequence[Path], text: TextStats) -> Path:
    """The file of the text's raw tokens, each a `text.dtype`; written if it is not in the cache.

    Raises:
        DataError: the cache cannot be written, or the text has changed since it was scanned.
    """
    folder = _folder(text.sha256)

    def build(target: Path) -> None:
        _encode(files, text, target / "tokens.bin")
        (target / "meta.json").write_bytes(_meta(text))

    with cache_errors(folder):
        if folder.exists() and not _is_complete(text):
            shutil.rmtree(folder)
        return cached(folder, build) / "tokens.bin"


def _encode(files: Sequence[Path], text: TextStats, target: Path) -> None:
    hasher, ids = hashlib.sha256(), np.zeros(CODE_POINTS, text.dtype)
    ids[code_points(text.vocabulary)] = np.arange(len(text.vocabulary))
    with target.open("wb") as file:
        for chunk in chunks(files, doing="encoding"):
            hasher.update(chunk.encode())
            file.write(ids[code_points(chunk)].data)
    if hasher.hexdigest() != text.sha256:
        place = os.path.commonpath(files)
        raise DataError(f"{place}: the text changed while it was read", hint="try again")


def _folder(sha256: str) -> Path:
    return cache_folder("char-text") / sha256


def _meta(text: TextStats) -> bytes:
    fields = {"vocabulary": text.vocabulary, "characters": text.characters, "dtype": text.dtype}
    return json.dumps(fields).encode()


def _is_complete(text: TextStats) -> bool:
    folder = _folder(text.sha256)
    size = text.characters * np.dtype(text.dtype).itemsize
    try:
        return (
            folder.joinpath("meta.json").read_bytes() == _meta(text)
            and folder.joinpath("tokens.bin").stat().st_size == size
        )
    except OSError:
        return False
