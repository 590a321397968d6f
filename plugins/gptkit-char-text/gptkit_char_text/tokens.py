"""A text's tokens: encoded once, then kept in the cache under the text's digest."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gptkit.plugin import DataError, cache_errors, cache_folder, cached
from gptkit_char_text.text import CODE_POINTS, Survey, chunks, code_points, digest


def surveyed(files: Sequence[Path]) -> Survey | None:
    """What the cache knows of the files' text; None where it was never encoded whole.

    Raises:
        DataError: a file cannot be read.
    """
    sha256 = digest(files)
    try:
        meta = json.loads((_folder(sha256) / "meta.json").read_bytes())
        text = Survey(sha256, meta["vocabulary"], meta["characters"])
        return text if _is_whole(text) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def encoded(files: Sequence[Path], text: Survey) -> Path:
    """The file of the text's raw tokens, each of `text.dtype`; written where it is not whole.

    Raises:
        DataError: the cache cannot be written, or the files no longer hold the text surveyed.
    """
    folder = _folder(text.sha256)

    def build(target: Path) -> None:
        _encode(files, text, target / "tokens.bin")
        (target / "meta.json").write_bytes(_meta(text))

    with cache_errors(folder):
        if folder.exists() and not _is_whole(text):
            shutil.rmtree(folder)
        return cached(folder, build) / "tokens.bin"


def _encode(files: Sequence[Path], text: Survey, target: Path) -> None:
    hasher, ids = hashlib.sha256(), np.zeros(CODE_POINTS, text.dtype)
    ids[code_points(text.vocabulary)] = np.arange(len(text.vocabulary))
    with target.open("wb") as file:
        for chunk in chunks(files):
            hasher.update(chunk.encode())
            file.write(ids[code_points(chunk)].data)
    if hasher.hexdigest() != text.sha256:
        place = os.path.commonpath(files)
        raise DataError(f"{place}: the text changed while it was read", hint="try again")


def _folder(sha256: str) -> Path:
    return cache_folder("char-text") / sha256


def _meta(text: Survey) -> bytes:
    fields = {"vocabulary": text.vocabulary, "characters": text.characters, "dtype": text.dtype}
    return json.dumps(fields).encode()


def _is_whole(text: Survey) -> bool:
    folder = _folder(text.sha256)
    size = text.characters * np.dtype(text.dtype).itemsize
    try:
        return (
            folder.joinpath("meta.json").read_bytes() == _meta(text)
            and folder.joinpath("tokens.bin").stat().st_size == size
        )
    except OSError:
        return False
