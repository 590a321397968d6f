"""The shards of both splits while they are written, with a journal from which to go on.

The journal says how far the shards are right. What a killed process wrote after it is cut off.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gptkit.plugin import digest, open_file, read_file, write_atomically
from gptkit_text.codec import TokenizerCodec
from gptkit_text.index import FILES, SPLITS, Index, Totals, shard_name, shard_sizes
from gptkit_text.synced import sync_folder, write_synced
from gptkit_text.words import Encoder
from gptkit_text.worker import Block, EncodedBlock

JOURNAL = "journal.npz"
SHARD = 1 << 27
"""Tokens of a file: a batch seldom needs many files, and no file is too large for a disk."""
SKETCH = 1 << 17
"""Hashes that are kept of a split's documents: the smallest ones, so any two sketches compare."""
MOST_JOURNAL = 1 << 30  # bytes
CHUNK = 1 << 20  # bytes read at a time


class Writer:
    """Writes tokens into a folder; continues what the journal there says, if it is right.

    Args:
        folder: of the shards; created, and emptied if its journal does not fit.
        codec: that gives the tokens.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, codec: TokenizerCodec) -> None:
        self.folder, self._vocab_size = folder, codec.vocab_size
        self._dtype = Encoder(codec).dtype
        self.parts = 0
        """Parts of documents that are encoded."""
        self._splits = self._new_splits()
        if not self._continue():
            self.close()
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            self._splits = self._new_splits()

    @property
    def documents(self) -> int:
        """Documents of both splits that are encoded, at least in part."""
        return sum(split.totals.documents for split in self._splits)

    def write(self, block: Block, encoded: EncodedBlock) -> None:
        """Append the tokens of a block to the splits that its texts belong to."""
        sizes = np.fromiter(map(len, block.texts), np.int64, len(block.texts))
        for split, chosen in zip(self._splits, (~block.validation, block.validation), strict=True):
            begun = chosen & block.firsts
            split.count(documents=int(begun.sum()), bytes=int(sizes[chosen].sum()))
            split.add_hashes(encoded.hashes[begun])
            split.append(encoded.tokens[np.repeat(chosen, encoded.lengths)])
        self.parts += len(block.texts)

    def save(self) -> None:
        """Note in the journal how far the shards are right, after they are on the disk."""
        for split in self._splits:
            split.sync()
        train, val = (split.sketch for split in self._splits)
        index = np.frombuffer(self._index().sealed(), np.uint8)
        journal = BytesIO()
        np.savez(journal, index=index, counts=self._counts(), train=train, val=val)
        contents = journal.getvalue()
        seal = hashlib.sha256(contents).digest()
        write_atomically(self.folder / JOURNAL, seal + contents)

    def finish(self, end: int | None, skipped: dict[str, int]) -> Index:
        """Complete the folder: the last end token, what belongs to all shards, and the index.

        The journal stays, to go on from if the folder cannot be renamed.
        """
        for split in self._splits:
            ends = [] if end is None or not split.totals.documents else [end]
            split.append(np.array(ends, self._dtype))
            split.sync()
            split.close()
            write_synced(self.folder / f"sketch-{split.name}.bin", split.sketch)
        write_synced(self.folder / "counts.bin", self._counts())
        index = self._index(skipped)
        sha256 = index.sha256 | {name: digest(self.folder / name) for name in FILES}
        index = index.model_copy(update={"sha256": sha256})
        write_atomically(self.folder / "index.json", index.sealed())
        sync_folder(self.folder)
        return index

    def close(self) -> None:
        """Close the files; what is not in the journal is lost."""
        for split in self._splits:
            with suppress(OSError):  # the disk is full: that was said already
                split.close()

    def _new_splits(self) -> list["_SplitWriter"]:
        return [_SplitWriter(self.folder, name, self._dtype, self._vocab_size) for name in SPLITS]

    def _counts(self) -> NDArray[np.int64]:
        return np.stack([split.counts for split in self._splits])

    def _index(self, skipped: dict[str, int] | None = None) -> Index:
        train, val = self._splits
        return Index(
            dtype=self._dtype,
            vocab_size=self._vocab_size,
            shard=SHARD,
            parts=self.parts,
            skipped=skipped or {},
            sha256=dict(pair for split in self._splits for pair in split.digests()),
            train=train.totals,
            val=val.totals,
        )

    def _continue(self) -> bool:
        """Take up what the journal says; whether it and the shards are right."""
        try:
            index, arrays = _read_journal(self.folder / JOURNAL)
            fits = (index.dtype, index.vocab_size, index.shard)
            if fits != (self._dtype, self._vocab_size, SHARD):
                return False
            for split, counts in zip(self._splits, arrays["counts"], strict=True):
                split.restore(index, counts, arrays[split.name])
        except (OSError, ValueError, KeyError):
            return False
        for path in self.folder.iterdir():
            if path.name not in (*index.sha256, JOURNAL):  # begun after the journal was written
                path.unlink()
        self.parts = index.parts
        return True


class _SplitWriter:
    """The shards of one split, its totals, its counts and its sketch."""

    def __init__(self, folder: Path, name: str, dtype: str, vocab_size: int) -> None:
        self.folder, self.name, self.dtype = folder, name, np.dtype(dtype)
        self.totals = Totals()
        self.counts = np.zeros(vocab_size, np.int64)
        self.sketch = np.zeros(0, np.uint64)
        self._full = list[str]()  # digests of the shards before the one that is written
        self._hasher = hashlib.sha256()
        self._file: BinaryIO | None = None

    def append(self, tokens: NDArray[Any]) -> None:
        """Write tokens; a new shard begins where one is full."""
        self.counts += np.bincount(tokens, minlength=len(self.counts))
        while len(tokens):
            room = SHARD - self.totals.tokens % SHARD
            part, tokens = tokens[:room], tokens[room:]
            if self._file is None:
                self._file = (self.folder / shard_name(self.name, len(self._full))).open("wb")
            self._file.write(part.data)
            self._hasher.update(part.data)
            self.count(tokens=len(part))
            if len(part) == room:
                self._end_shard()

    def count(self, **more: int) -> None:
        """Add to the totals."""
        self.totals = self.totals.add(**more)

    def add_hashes(self, hashes: NDArray[np.uint64]) -> None:
        """Keep the smallest different hashes."""
        if len(self.sketch) == SKETCH:
            hashes = hashes[hashes < self.sketch[-1]]
        if len(hashes):
            self.sketch = np.union1d(self.sketch, hashes)[:SKETCH]

    def digests(self) -> Iterator[tuple[str, str]]:
        """Each shard's name and digest, as far as it is written."""
        unfinished = [self._hasher.hexdigest()] if self.totals.tokens % SHARD else []
        for i, sha256 in enumerate([*self._full, *unfinished]):
            yield shard_name(self.name, i), sha256

    def sync(self) -> None:
        """Wait until what was appended is on the disk."""
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file that is written."""
        if self._file:
            self._file.close()

    def restore(self, index: Index, counts: NDArray[np.int64], sketch: NDArray[np.uint64]) -> None:
        """Go on after the tokens of an index.

        Raises:
            ValueError: the shards hold other tokens.
            OSError: a shard cannot be read.
        """
        self.totals, self.counts, self.sketch = index.totals(self.name), counts, sketch
        for i, size in enumerate(shard_sizes(self.totals.tokens, index.shard)):
            path, size = self.folder / shard_name(self.name, i), size * self.dtype.itemsize
            hasher = _hash(path, size)
            if hasher.hexdigest() != index.sha256[path.name]:
                raise ValueError(f"{path}: damaged")
            if size == SHARD * self.dtype.itemsize:
                self._full.append(hasher.hexdigest())
            else:
                self._hasher, self._file = hasher, path.open("r+b")
                self._file.truncate(size)
                self._file.seek(size)

    def _end_shard(self) -> None:
        assert self._file
        self.sync()
        self._file.close()
        self._full.append(self._hasher.hexdigest())
        self._hasher, self._file = hashlib.sha256(), None


def _hash(path: Path, size: int) -> "hashlib._Hash":
    """The sha256 of a file's first bytes, which goes on with what is appended to them."""
    hasher = hashlib.sha256()
    with open_file(path) as file:
        while size > 0 and (chunk := file.read(min(CHUNK, size))):
            hasher.update(chunk)
            size -= len(chunk)
    return hasher


def _read_journal(path: Path) -> tuple[Index, dict[str, NDArray[Any]]]:
    contents = read_file(path, limit=MOST_JOURNAL)
    seal, contents = contents[:32], contents[32:]
    if hashlib.sha256(contents).digest() != seal:
        raise ValueError(f"{path}: damaged")
    with np.load(BytesIO(contents)) as file:
        arrays = {name: file[name] for name in file.files}
    return Index.unsealed(arrays.pop("index").tobytes()), arrays
