"""Shards of a text at addresses: fetched and encoded when asked for, then kept in the store."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from gptkit.plugin import DataError
from gptkit_text.addresses import copy, name_of
from gptkit_text.codec import TokenizerCodec
from gptkit_text.decoding import Errors
from gptkit_text.documents import Reader
from gptkit_text.files import digest_all, find
from gptkit_text.shards import Encoded, encoded, find_encoded
from gptkit_text.sources import Source, texts
from gptkit_text.store import Known, Store

GIGABYTE = 10**9
FIRST_GUESS = 8.0
"""Bytes of tokens for each byte of the first shard as it is sent, perhaps compressed."""
MARGIN = 1.25
"""How many times the first shard's bytes of tokens another one may have, for each byte sent."""
OVERHEAD = 1 << 11
"""Bytes of an index."""
AT_ONCE = 3
"""Shards that are kept in any case: the first one, the present one and the next one."""


@dataclass
class RemoteText:
    """Shards of a text.

    Attributes:
        addresses: Where they are.
        store: Where they are kept when they are encoded.
        text_key: The key or the column of the text.
        errors: Whether bytes that are not UTF-8 are an error, or become U+FFFD.
        val_fraction: Share of the documents for validation.
        processes: How many encode the first shard.
        processes_ahead: How many encode another one, while the model trains.
    """

    addresses: Sequence[str]
    store: Store
    text_key: str
    errors: Errors
    val_fraction: float
    processes: int
    processes_ahead: int
    _growth: float | None = None
    """Bytes of tokens for each byte as it is sent; None before the first shard is known."""
    _found: dict[int, Encoded] = field(default_factory=dict)

    def known(self, number: int) -> Known | None:
        """What is known of a shard that was read before."""
        return self.store.read_known(self.addresses[number], self.text_key)

    def find(self, number: int, codec: TokenizerCodec) -> Encoded | None:
        """An encoded shard, if it is in the store."""
        found = self._found.get(number)
        if found is None or not found.folder.is_dir():
            found = None
            if known := self.known(number):
                found = find_encoded(
                    known.source,
                    codec,
                    errors=self.errors,
                    val_fraction=self.val_fraction,
                    cache=self.store.encoded,
                )
        if found:
            self._found[number] = found
            self.store.use(found.folder)
        return found

    def get(self, number: int, codec: TokenizerCodec, *, keep: Collection[int] = ()) -> Encoded:
        """An encoded shard; fetched and encoded if it is not in the store.

        Args:
            number: of the shard.
            codec: gives its tokens; the same one in all calls.
            keep: numbers of shards that must not be deleted in favour of this one.

        Raises:
            DataError: the shard is not what its name says, has changed since it was first read,
                or there is no room for it.
            DownloadError: it cannot be had.
        """
        found = self.find(number, codec)
        if found is None:
            with self.arrival(number, keep=keep) as arrival:
                arrival.begin()
                found = self.find(number, codec) or arrival.encode(codec)
        return found

    def use(self, numbers: Collection[int]) -> None:
        """Let other trainings delete their own shards before these."""
        for folder in self.folders(numbers):
            self.store.use(folder)

    def arrival(self, number: int, *, keep: Collection[int] = ()) -> "Arrival":
        """A shard that is to be fetched, perhaps."""
        return Arrival(self, number, keep)

    def measure(self, first: Encoded) -> None:
        """Learn from the first shard how much room the others need.

        Raises:
            DataError: `AT_ONCE` shards and the file of one have no room.
        """
        known, size = self.known(0), _size(first)
        assert known
        self._growth = MARGIN * size / max(known.size, 1)
        shards = min(AT_ONCE, len(self.addresses))
        need = self.needed(known.size) + (shards - 1) * size
        if need > self.store.limit:
            raise self.no_room(f"{shards} shards like {self.addresses[0]} take", need)

    def needed(self, size: int) -> int:
        """Bytes of a shard's file and of its tokens."""
        return ceil(size * (1 + (FIRST_GUESS if self._growth is None else self._growth)))

    @property
    def is_guess(self) -> bool:
        """Whether `needed` does not know better."""
        return self._growth is None

    def folders(self, numbers: Collection[int]) -> list[Path]:
        """Where some of the shards are, as far as they were found."""
        return [self._found[number].folder for number in numbers if number in self._found]

    def no_room(self, what: str, need: int) -> DataError:
        """The error that `cache_gb` is too small."""
        return DataError(
            f"cache_gb = {self.store.limit / GIGABYTE:g} is too small: {what} {need:,} bytes",
            hint=f"set cache_gb to {ceil(need / GIGABYTE * 1000) / 1000:g} or more in [dataset]",
        )


class Arrival:
    """The file of a shard, which is fetched when it is first asked for, and deleted at the end.

    Errors name the address in place of the file.

    Args:
        text: that the shard belongs to.
        number: of the shard.
        keep: numbers of shards that must not be deleted in favour of this one.
    """

    def __init__(self, text: RemoteText, number: int, keep: Collection[int]) -> None:
        self._text, self._number, self._keep = text, number, keep
        self._address = text.addresses[number]
        self._path = text.store.incoming / name_of(self._address)
        self._stack = ExitStack()
        self._begun = False
        self._reader: Reader | None = None

    def __enter__(self) -> Self:
        self._stack.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)
        if isinstance(error, DataError) and str(self._path) in str(error):
            told = str(error).replace(str(self._path), self._address)
            raise type(error)(told, hint=error.hint) from error

    def begin(self) -> None:
        """Wait until no other process fills the store; it may have added this shard."""
        if not self._begun:
            self._stack.enter_context(self._text.store.filling())
            self._begun = True

    @property
    def source(self) -> str:
        """Digest of the shard's file, as it was when it was first read."""
        known = self._text.known(self._number)
        return known.source if known else digest_all(self.reader.files)

    @property
    def reader(self) -> Reader:
        """Of the shard's file.

        Raises:
            DataError: it has changed since it was first read, or there is no room for it.
            DownloadError: it cannot be had.
        """
        if self._reader is None:  # no cached_property: in Python 3.11 all of them share a lock
            self._reader = self._fetch()
        return self._reader

    def texts(self) -> Iterator[str]:
        """The documents, or pieces of them."""
        return texts([Source(self._path.name, 1.0, self.reader)])

    def encode(self, codec: TokenizerCodec) -> Encoded:
        """Encode the shard and put it into the store."""
        text, size = self._text, self.reader.total
        found = encoded(
            self.reader,
            codec,
            val_fraction=text.val_fraction,
            processes=text.processes if text.is_guess else text.processes_ahead,
            cache=text.store.encoded,
        )
        text.store.write_known(
            Known(address=self._address, text_key=text.text_key, source=found.source, size=size)
        )
        self._path.unlink()
        text.store.make_room(0, keep=[found.folder, *text.folders(self._keep)])
        return found

    def _fetch(self) -> Reader:
        self.begin()
        copy(self._address, self._path, expect=self._make_room)
        files = find([self._path], text_key=self._text.text_key)
        known = self._text.known(self._number)
        if known and known.source != digest_all(files):
            raise DataError(
                f"{self._address}: has changed since it was first read",
                hint="a run cannot go on with other data; to begin a new one, delete "
                f"{self._text.store.known_file(self._address, self._text.text_key)}",
            )
        return Reader(files, errors=self._text.errors)

    def _make_room(self, size: int) -> None:
        text = self._text
        need = text.needed(size)
        least = size if text.is_guess else need
        missing = text.store.make_room(need, keep=text.folders(self._keep), least=least)
        if missing > need - least:
            what = f"{self._address} and the shards in use take"
            raise text.no_room(what, text.store.limit + missing)


def _size(shard: Encoded) -> int:
    """About as many bytes as its files have; another training may have deleted them."""
    index = shard.index
    tokens = index.train.tokens + index.val.tokens
    documents = index.train.documents + index.val.documents  # the sketches
    counts = 2 * index.vocab_size
    return tokens * np.dtype(index.dtype).itemsize + 8 * (documents + counts) + OVERHEAD
