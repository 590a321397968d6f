"""The tokens of a text: encoded once, then cached under the text's digest."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptkit.plugin import (
    DataError,
    cache_errors,
    cache_folder,
    cached,
    open_file,
    progress,
    read_json,
)
from gptkit_char_text.text import CHUNK, CODE_POINTS, TextStats, chunks, code_points, text_digest

NO_CHARACTER = 0xD8FF  # a surrogate, which no text has; its last byte is not ASCII


def cached_stats(files: Sequence[Path]) -> TextStats | None:
    """What `scan` would give, from the cache; None if the text is not in the cache.

    Raises:
        DataError: a file cannot be read.
    """
    return _stored(text_digest(files))


def tokens_path(text: TextStats) -> Path:
    """The file of the text's raw tokens in the cache, each a `text.dtype`."""
    return _folder(text.sha256) / "tokens.bin"


def encode(files: Sequence[Path], text: TextStats) -> None:
    """Write the text's tokens into the cache; what is there and does not fit is replaced.

    Raises:
        DataError: the cache cannot be written, or the text has changed since it was scanned.
    """
    folder = _folder(text.sha256)

    def build(target: Path) -> None:
        _encode(files, text, target / "tokens.bin")
        (target / "meta.json").write_bytes(_meta(text))

    with cache_errors(folder):
        cached(folder, build, fits=lambda folder: _stored(text.sha256) is not None)


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


def _stored(sha256: str) -> TextStats | None:
    """What the cache has of a text; None if its tokens do not give back that very text."""
    folder = _folder(sha256)
    try:
        vocabulary = str(read_json(folder / "meta.json")["vocabulary"])
        text = _read_back(folder / "tokens.bin", vocabulary)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return text if text and text.sha256 == sha256 else None


def _read_back(path: Path, vocabulary: str) -> TextStats | None:
    """What `scan` gives for the text of these tokens; None if it has another vocabulary."""
    decode, dtype = _decoder(vocabulary), TextStats("", vocabulary, 0).dtype
    hasher, seen, characters = hashlib.sha256(), np.zeros(len(vocabulary), bool), 0
    with open_file(path) as file, progress("checking the cache", total=path.stat().st_size) as show:
        while chunk := file.read(CHUNK):
            ids = np.frombuffer(chunk, dtype)
            hasher.update(decode(chunk, ids))
            if not seen.all():
                seen[ids] = True
            characters += len(ids)
            show(len(chunk))
    if not seen.all() or list(vocabulary) != sorted(set(vocabulary)):
        return None
    return TextStats(hasher.hexdigest(), vocabulary, characters)


def _decoder(vocabulary: str) -> Callable[[bytes, NDArray[np.unsignedinteger]], bytes]:
    """What turns raw tokens into UTF-8; for ASCII by the fastest way there is."""
    points = code_points(vocabulary)
    table = np.full(1 << 16, NO_CHARACTER, "<u4")
    table[: len(points)] = points
    if points.max(initial=0) < 1 << 7:
        narrow = table[: 1 << 8].astype("u1").tobytes()
        return lambda chunk, ids: chunk.translate(narrow)
    return lambda chunk, ids: table.take(ids).tobytes().decode("utf-32-le").encode()
