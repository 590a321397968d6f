"""An encoded text: a complete folder of the cache, or made into one."""

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptkit.plugin import (
    DataError,
    cache_errors,
    cache_folder,
    progress,
    read_file,
)
from gptkit_text.alone import alone
from gptkit_text.codec import TokenizerCodec
from gptkit_text.decoding import Errors
from gptkit_text.documents import Reader
from gptkit_text.encode import encode
from gptkit_text.files import common_place, file_digest
from gptkit_text.fingerprint import Fingerprint
from gptkit_text.index import SPLITS, Index, SplitName, shard_name, shard_sizes
from gptkit_text.synced import sync_folder
from gptkit_text.windows import Segment
from gptkit_text.writer import JOURNAL, SKETCH, Writer

FORMAT = 1  # of the folder; part of its name
MOST_INDEX = 1 << 26  # bytes of index.json
ALL = np.uint64(2**64 - 1)
MONTH = 30 * 86_400.0  # seconds


@dataclass(frozen=True)
class Encoded:
    """The tokens of a text: a complete folder of the cache."""

    folder: Path
    index: Index
    source: str
    """Digest of the files."""

    def segments(self, split: SplitName) -> list[Segment]:
        """The shards of a split, in order."""
        sizes = shard_sizes(self.index.totals(split).tokens, self.index.shard)
        return [
            Segment(self.folder / shard_name(split, i), 0, size) for i, size in enumerate(sizes)
        ]

    def counts(self) -> NDArray[np.int64]:
        """How often each token occurs in the training and in the validation split, (2, vocab)."""
        counts = np.fromfile(self.folder / "counts.bin", np.int64)
        return counts.reshape(2, self.index.vocab_size)

    def sketch(self, split: SplitName) -> NDArray[np.uint64]:
        """The smallest hashes of a split's documents, sorted; equal for nearly equal documents."""
        return np.fromfile(self.folder / f"sketch-{split}.bin", np.uint64)


def encoded(
    reader: Reader,
    codec: TokenizerCodec,
    *,
    val_fraction: float,
    processes: int,
    source: Fingerprint | None = None,
    cache: Path | None = None,
) -> Encoded:
    """The tokens of a reader's files; encoded if they are not in the cache.

    If that was interrupted before, it goes on where it was. One process encodes; others wait.

    Args:
        reader: of the files.
        codec: gives the tokens.
        val_fraction: share of the documents for validation.
        processes: how many encode.
        source: fingerprint of the files, if it is known; if they are encoded, they are not read.
        cache: the folder around the result; None for the usual one.

    Raises:
        DataError: a file cannot be read, holds no text or changes meanwhile, or the cache cannot
            be written.
        RunError: a process that encodes has ended, perhaps for lack of memory.
    """
    source = source or Fingerprint.of(reader.files)
    task = _Task(reader, codec, val_fraction, processes, source)
    key = _key(source.sha256, codec, reader.errors, val_fraction)
    folder = (cache or cache_folder("text") / "encoded") / key
    with cache_errors(folder):
        index = _open(folder)
        if index is None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with alone(folder.with_name(f".{folder.name}.lock"), f"encodes {task.place.name}"):
                index = _open(folder) or _build(folder, task)
    return Encoded(folder, index, source.sha256)


def find_encoded(
    source: str, codec: TokenizerCodec, *, errors: Errors, val_fraction: float, cache: Path
) -> Encoded | None:
    """The tokens of files, if they are in the cache; the files need not be there.

    Args:
        source: digest of the files.
        codec: gave the tokens.
        errors: as for the reader of the files.
        val_fraction: share of the documents for validation.
        cache: the folder around the result.
    """
    folder = cache / _key(source, codec, errors, val_fraction)
    index = _open(folder)
    return Encoded(folder, index, source) if index else None


def shared_share(sources: Sequence[Encoded]) -> float:
    """The share of the validation documents that are in training, too, or nearly so.

    Equal documents count once. Exact as long as a sketch holds all hashes; else it is estimated
    from the smallest ones, which are a random sample.
    """
    train, val = (_joined([source.sketch(split) for source in sources]) for split in SPLITS)
    sampled = val[val <= min((x[-1] for x in (train, val) if len(x) == SKETCH), default=ALL)]
    return float(np.isin(sampled, train).mean()) if len(sampled) else 0.0


@dataclass(frozen=True)
class _Task:
    """What to encode, and how."""

    reader: Reader
    codec: TokenizerCodec
    val_fraction: float
    processes: int
    source: Fingerprint

    @property
    def place(self) -> Path:
        """The file, or the folder around all of them."""
        return common_place([file.path for file in self.reader.files])

    def run(self, writer: Writer) -> Index:
        """Encode what the writer does not have yet."""
        encode(
            self.reader,
            self.codec,
            writer,
            name=self.place.name,
            val_fraction=self.val_fraction,
            processes=self.processes,
            check=self.source.check,
        )
        self.source.check(read=True)
        return writer.finish(self.codec.end, dict(self.reader.skipped))


def _key(source: str, codec: TokenizerCodec, errors: Errors, val_fraction: float) -> str:
    """Digest of all that decides the tokens."""
    encoder = codec.model_dump(mode="json", include={"tokenizer", "end"})
    encoder |= codec.model_dump(mode="json", include={"begin", "space"}, exclude_none=True)
    options = [FORMAT, source, encoder, errors, val_fraction]
    return hashlib.sha256(json.dumps(options).encode()).hexdigest()


def _build(folder: Path, task: _Task) -> Index:
    """Encode into a hidden folder, which stays when this is interrupted; rename it at the end."""
    _remove_abandoned(folder.parent)
    part = folder.with_name(f".{folder.name}.part")
    try:
        with closing(Writer(part, task.codec)) as writer:
            index = task.run(writer)
    except DataError as error:
        # Files that are wrong or have changed give another folder; a disk that failed, or a
        # package that was missing, does not.
        if not isinstance(error.__cause__, OSError | ImportError):
            shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)  # a damaged one
    part.rename(folder)
    sync_folder(folder.parent)
    (folder / JOURNAL).unlink(missing_ok=True)
    return index


def _open(folder: Path) -> Index | None:
    """The index of a complete folder; None if it is damaged or not there."""
    try:
        index = Index.unsealed(read_file(folder / "index.json", limit=MOST_INDEX))
        total = sum((folder / name).stat().st_size for name in index.sha256)
        with progress("checking the cache", total=total) as advance:
            right = all(
                file_digest(folder / name, advance) == index.sha256[name]
                for name in index.file_names()
            )
    except (OSError, ValueError, KeyError, DataError):
        return None
    return index if right else None


def _joined(sketches: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """The sketch of all documents."""
    return np.unique(np.concatenate(sketches))[:SKETCH]


def _remove_abandoned(cache: Path) -> None:
    """Delete what interrupted encodings left, if none went on with it for a month."""
    for part in cache.glob(".*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > MONTH:
                shutil.rmtree(part)
