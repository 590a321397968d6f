"""Text: documents of any files, in subword tokens or bytes."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from gptkit.plugin import Data, DataError, Dataset, note
from gptkit_text.addresses import name_of
from gptkit_text.codec import TokenizerCodec
from gptkit_text.documents import Reader
from gptkit_text.fingerprint import Fingerprint
from gptkit_text.order import Order, whole
from gptkit_text.remote import RemoteShards, Shard, open_first
from gptkit_text.remote_text import GIGABYTE, RemoteText
from gptkit_text.shards import Encoded, encoded
from gptkit_text.sources import (
    Endings,
    Places,
    Source,
    TextSource,
    addresses_of,
    open_source,
    texts,
)
from gptkit_text.store import Store
from gptkit_text.tokenizer import TokenizerOption, TrainTokenizer, make_codec
from gptkit_text.windows import Segment, Windows, cut, length

SONNETS = Path(__file__).with_name("sonnets.jsonl")
Streams = tuple[Sequence[Segment], Sequence[Segment]]
"""The tokens for training and those for validation."""


@dataclass(frozen=True)
class Corpus:
    """A text and its tokens."""

    sources: Sequence[Source]
    encoded: Sequence[Encoded]
    """The tokens of each source."""
    codec: TokenizerCodec
    key: str
    """Digest of the text."""
    remote: RemoteText | None = None
    """All shards of a text at addresses; the source is the first one of them."""


class Text(Dataset):
    """Documents of files in many formats, in subword tokens or bytes."""

    contract = 1
    changeable = frozenset({"path", "hf", "processes", "cache_gb"})

    source: Literal["sonnets"] = "sonnets"
    """Shakespeare's sonnets, which ship with the plugin."""
    path: Places | None = None
    """A file, a folder, an address, or a list of them, in which `{000..199}` stands for as many
    numbers; used instead of source."""
    hf: str | None = Field(default=None, min_length=1)
    """A data set on the Hugging Face Hub, "owner/name" or "owner/name@revision", either with
    "/folder"; used instead of source."""
    sources: list[TextSource] = Field(default=[])
    """A mixture: tables with path or hf, weight, name and text_key; used instead of source."""
    text_key: str = "text"
    """The key or the column of the text in JSONL, JSON, CSV and Parquet files; also of sources
    that have none of their own."""
    endings: Endings | None = None
    """What folders are searched for, such as [".py", ".md"]; all known formats if unset. A file
    with an ending that is no known format is plain text."""
    errors: Literal["strict", "replace"] = "strict"
    """Refuse zero bytes and those that are not UTF-8, or replace them by U+FFFD."""
    tokenizer: TokenizerOption = TrainTokenizer(train=4096)
    """{ train = 4096 } to learn so many tokens from the text; or "byte", "gpt2", a tokenizer.json,
    or a folder that has one."""
    documents: Literal["mask", "mark", "join"] = "mask"
    """"mask": no attention from one document to another; "mark": only an end token between them;
    "join": only a line feed."""
    block_size: PositiveInt = 256
    """Tokens of context."""
    val_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of the documents for validation, chosen by a hash of their content."""
    order: Literal["sample", "shuffle"] = "sample"
    """Draw windows with replacement, or each once per epoch."""
    processes: PositiveInt | None = None
    """How many encode the text; as many as there are CPU cores if unset."""
    cache_gb: PositiveFloat = Field(default=20.0, allow_inf_nan=False)
    """Gigabytes of remote text that are kept in the cache."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in ("path", "hf", "sources") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"should have only one of {' and '.join(given)}")
        names = [source.label for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'two sources have the name "{name}": set their name')
        return self

    def load(self) -> Data:
        """Encode the text, unless it is in the cache, and split it.

        Raises:
            DataError: a file is missing or is not what its name says, the text is too short, or
                the cache cannot be written.
            DownloadError: something cannot be downloaded.
            RunError: a process that encodes has ended.
        """
        corpus = self.corpus()
        train, val = self._splits(corpus, self.streams(corpus))
        shuffle, remote = self.order == "shuffle", corpus.remote
        return Data(
            train=RemoteShards(remote, corpus.codec, train, shuffle=shuffle) if remote else train,
            val=Shard(remote, 0, corpus.codec, val) if remote else val,
            codec=corpus.codec,
            vocab_size=corpus.codec.vocab_size,
            block_size=self.block_size,
            sha256=corpus.key,
            document_start=corpus.codec.start_token if self.documents == "mask" else None,
        )

    def corpus(self) -> Corpus:
        """The text, encoded unless it is in the cache; `load` says what it raises."""
        tables, join = self._tables(), self.documents == "join"
        if addresses := addresses_of(tables):
            return self._remote_corpus(addresses)
        text_key, endings = self.text_key, self.endings
        sources = [
            open_source(table, self.errors, text_key=text_key, endings=endings) for table in tables
        ]
        prints = [Fingerprint.of(source.reader.files) for source in sources]
        digests = [each.sha256 for each in prints]
        key = hashlib.sha256(json.dumps([digests, self.errors]).encode()).hexdigest()
        codec = make_codec(self.tokenizer, lambda: _texts(sources, prints), key=key, join=join)
        found = [self._encoded(*pair, codec) for pair in zip(sources, prints, strict=True)]
        return Corpus(sources, found, codec, key)

    def _remote_corpus(self, addresses: Sequence[str]) -> Corpus:
        """Of a text at addresses: its first shard, from which the tokenizer learns."""
        remote = RemoteText(
            addresses,
            Store(int(self.cache_gb * GIGABYTE)),
            text_key=self.text_key,
            errors=self.errors,
            val_fraction=self.val_fraction,
            processes=self.processes or _cores(),
            processes_ahead=self.processes or max(1, _cores() // 2),
        )
        codec, first, key = open_first(remote, self.tokenizer, join=self.documents == "join")
        name = name_of(addresses[0])
        source = Source(Path(name).stem, 1.0, Reader([]), address=addresses[0])
        return Corpus([source], [first], codec, key, remote)

    def streams(self, corpus: Corpus) -> list[Streams]:
        """The tokens of each source for training and for validation."""
        return [self._divide(encoded) for encoded in corpus.encoded]

    def _tables(self) -> list[TextSource]:
        """The sources, also of a single one."""
        path = self.path or (None if self.hf else str(SONNETS))
        alone = TextSource(path=path, hf=self.hf)
        return self.sources or [alone]

    def _encoded(self, source: Source, found: Fingerprint, codec: TokenizerCodec) -> Encoded:
        return encoded(
            source.reader,
            codec,
            val_fraction=self.val_fraction,
            processes=self.processes or _cores(),
            source=found,
        )

    def _splits(self, corpus: Corpus, streams: Sequence[Streams]) -> list[Windows]:
        """The windows for training, in the order of the options, and those for validation."""
        sources = corpus.sources
        order = Order(
            tokens=tuple(length(train) for train, _ in streams),
            weights=whole([source.weight for source in sources]),
            block_size=self.block_size,
            shuffle=self.order == "shuffle",
        )
        self.check_lengths(sources, streams)
        for source, found, (_, val) in zip(sources, corpus.encoded, streams, strict=True):
            _tell_cut(source, found, val)
        dtype, names = corpus.encoded[0].index.dtype, [source.name for source in sources]
        return [
            Windows(
                [segment for stream in streams for segment in stream[i]],
                dtype,
                block_size=self.block_size,
                order=order if i == 0 else None,
                names=names if i == 0 and len(names) > 1 else (),
            )
            for i in range(2)
        ]

    def _divide(self, found: Encoded) -> Streams:
        """A source's tokens for training and validation.

        Where whole documents leave one side without a window, the end is for validation.
        """
        train, val = found.segments("train"), found.segments("val")
        if min(length(train), length(val)) > self.block_size:
            return train, val
        both = [*train, *val]
        total = length(both)
        place = int(total * (1 - Fraction(str(self.val_fraction))))
        return cut(both, 0, place), cut(both, place, total)

    def check_lengths(self, sources: Sequence[Source], streams: Sequence[Streams]) -> None:
        """Raise a DataError if a split is shorter than a window."""
        trains, val = [length(train) for train, _ in streams], sum(length(v) for _, v in streams)
        shortest = min(trains)
        largest = min(shortest, val) - 1  # a window needs one token more, for its last target
        if largest < self.block_size:
            smaller = f"set block_size to {largest} or less, or " if largest > 0 else ""
            raise DataError(
                f"{sources[trains.index(shortest)].place}: too short for block_size "
                f"{self.block_size}: {shortest:,} tokens for training and {val:,} for validation",
                hint=f"{smaller}use more text, or another val_fraction",
            )


def _texts(sources: Sequence[Source], prints: Sequence[Fingerprint]) -> Iterator[str]:
    """All documents, or pieces of them, if the files stay as they are."""
    yield from texts(sources)
    for found in prints:
        found.check(read=True)


def _tell_cut(source: Source, found: Encoded, val: Sequence[Segment]) -> None:
    """Say it if the validation split is not of whole documents."""
    if val != found.segments("val"):
        note(
            f"{source.place}: too few documents to take whole ones for validation: "
            f"its last {length(val):,} tokens are taken"
        )


def _cores() -> int:
    """The CPU cores that this process may use."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
