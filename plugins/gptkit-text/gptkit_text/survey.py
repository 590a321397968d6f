"""What a data set's tokens are: how many there are, which ones, and how a passage is divided."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptkit.plugin import DataError, map_tokens
from gptkit_text.codec import TokenizerCodec
from gptkit_text.dataset import Corpus, Streams, Text
from gptkit_text.shards import Encoded, shared_share
from gptkit_text.visible import visible
from gptkit_text.windows import Segment, cut, length

CHUNK = 1 << 22  # tokens that are read at a time
PASSAGE = 400
"""Tokens of the passage."""
LISTED = 100
"""Tokens of a list."""

Counts = NDArray[np.int64]
"""How often each token comes in training and in validation, (2, vocab_size)."""


@dataclass(frozen=True)
class Amount:
    """How much text there is."""

    documents: int | None
    """None if it is only the end of a source."""
    bytes: int
    """In UTF-8."""
    tokens: int


@dataclass(frozen=True)
class SourceFacts:
    """What a source of a mixture, or the only one, has."""

    name: str
    weight: float
    share: float
    """Of the windows that a training draws."""
    epochs: float
    """How often a training with `train.epochs = 1` draws its text."""
    files: int
    skipped: dict[str, int]
    """What was left out, by its kind."""
    train: Amount
    val: Amount


@dataclass(frozen=True)
class Token:
    """A token of the vocabulary."""

    id: int
    piece: bytes
    count: int
    """How often it comes in training."""


@dataclass(frozen=True)
class Group:
    """Some tokens of the vocabulary: how many, and the first of them."""

    size: int
    first: tuple[Token, ...]


@dataclass(frozen=True)
class Survey:
    """The facts that `gptkit tokenize` shows."""

    shards: int | None
    """How many there are at addresses; all facts are those of the first. None for local files."""
    dataset: Text
    codec: TokenizerCodec
    sources: tuple[SourceFacts, ...]
    train: Amount
    val: Amount
    single: Group
    """Tokens of one byte."""
    longer: Group
    """Tokens of several bytes."""
    commonest: Group
    """Tokens that come in training, the most frequent first, but for the end token."""
    longest: Group
    """Those of them that come in training, the longest first."""
    rarest: Group
    """Tokens that come in training, the rarest first."""
    never_single: Group
    """Tokens of one byte that never come in training."""
    never: Group
    """Tokens of several bytes that never come in training."""
    untaught: Group
    """Tokens that come in validation, and never in training."""
    median: float
    """How often the median of the tokens of several bytes comes in training."""
    shared: float
    """The share of the validation documents that are in training, too, or nearly so."""
    passage: tuple[int, ...]
    """The first tokens of training."""
    too_short: str | None
    """Why a training would refuse the text; None if it would not."""

    def windows(self, amount: Amount) -> int:
        """How many windows lie side by side."""
        return max(0, (amount.tokens - 1) // self.dataset.block_size)

    def shown(self, token: int) -> str:
        """A token as people see it."""
        return visible(self.codec.token_bytes[token] or self.special(token))

    def special(self, token: int) -> bytes:
        """How the tokenizer spells a token that is no text."""
        return self._special.get(token, b"")

    @cached_property
    def _special(self) -> dict[int, bytes]:
        added = json.loads(self.codec.tokenizer_json())["added_tokens"]
        return {token["id"]: str(token["content"]).encode() for token in added}


def survey(dataset: Text) -> Survey:
    """Look at a data set's tokens; its text is encoded first, unless it is in the cache.

    Raises:
        GptkitError: what `dataset.load` raises, but for a text that is too short.
    """
    corpus = dataset.corpus()
    streams = dataset.streams(corpus)
    counts = [_counts(*pair) for pair in zip(corpus.encoded, streams, strict=True)]
    amounts = [_amounts(corpus, i, streams[i], counts[i]) for i in range(len(counts))]
    train, val = (_sum([pair[side] for pair in amounts]) for side in range(2))
    pairs = zip(corpus.encoded, streams, strict=True)
    whole = [found for found, pair in pairs if _is_whole(found, pair)]
    return Survey(
        shards=len(corpus.remote.addresses) if corpus.remote else None,
        dataset=dataset,
        codec=corpus.codec,
        sources=_sources(corpus, amounts, train.tokens),
        train=train,
        val=val,
        **_groups(corpus.codec, np.sum(counts, axis=0)),
        shared=shared_share(whole) if whole else 0.0,
        passage=_passage(streams[0][0], corpus.encoded[0].index.dtype),
        too_short=_too_short(corpus, streams, dataset),
    )


def _too_short(corpus: Corpus, streams: Sequence[Streams], dataset: Text) -> str | None:
    try:
        dataset.check_lengths(corpus.sources, streams)
    except DataError as error:
        return f"{error}; {error.hint}"
    return None


def _counts(found: Encoded, streams: Streams) -> Counts:
    counts = found.counts()
    if _is_whole(found, streams):
        return counts
    val = np.zeros(found.index.vocab_size, np.int64)
    for segment in streams[1]:
        for start in range(segment.start, segment.stop, CHUNK):
            part = Segment(segment.path, start, min(start + CHUNK, segment.stop))
            val += np.bincount(_read(part, found.index.dtype), minlength=len(val))
    return np.stack([counts.sum(axis=0) - val, val])


def _is_whole(found: Encoded, streams: Streams) -> bool:
    """Whether whole documents are for validation, not the end of the text."""
    return list(streams[1]) == found.segments("val")


def _amounts(corpus: Corpus, i: int, streams: Streams, counts: Counts) -> tuple[Amount, Amount]:
    """How much a source has for training and for validation."""
    index = corpus.encoded[i].index
    if _is_whole(corpus.encoded[i], streams):
        train, val = (Amount(t.documents, t.bytes, t.tokens) for t in (index.train, index.val))
        return train, val
    sizes = counts @ np.array([len(piece) for piece in corpus.codec.token_bytes])
    documents = index.train.documents + index.val.documents
    return (
        Amount(documents, int(sizes[0]), length(streams[0])),
        Amount(None, int(sizes[1]), length(streams[1])),
    )


def _sum(amounts: Sequence[Amount]) -> Amount:
    known = [amount.documents for amount in amounts if amount.documents is not None]
    return Amount(
        documents=sum(known) if len(known) == len(amounts) else None,
        bytes=sum(amount.bytes for amount in amounts),
        tokens=sum(amount.tokens for amount in amounts),
    )


def _sources(
    corpus: Corpus, amounts: Sequence[tuple[Amount, Amount]], tokens: int
) -> tuple[SourceFacts, ...]:
    """The facts of each source; `tokens` are those of all for training."""
    total = sum(source.weight for source in corpus.sources)
    return tuple(
        SourceFacts(
            name=source.name,
            weight=source.weight,
            share=source.weight / total,
            epochs=source.weight / total * tokens / max(train.tokens, 1),
            files=max(1, len(source.reader.files)),  # a shard at an address is one
            skipped=found.index.skipped,
            train=train,
            val=val,
        )
        for source, found, (train, val) in zip(corpus.sources, corpus.encoded, amounts, strict=True)
    )


def _groups(codec: TokenizerCodec, counts: Counts) -> dict[str, Any]:
    """The fields of a Survey that are about the vocabulary."""
    sizes = np.array([len(piece) for piece in codec.token_bytes])
    train, val = counts

    def group(chosen: NDArray[np.bool_], rank: NDArray[np.int64]) -> Group:
        ids = np.flatnonzero(chosen)
        first = ids[np.argsort(rank[ids], kind="stable")][:LISTED].tolist()
        tokens = [Token(i, codec.token_bytes[i], int(train[i])) for i in first]
        return Group(len(ids), tuple(tokens))

    is_single, is_longer, by_id = sizes == 1, sizes > 1, np.zeros_like(sizes)
    return {
        "single": group(is_single, by_id),
        "longer": group(is_longer, by_id),
        "commonest": group((train > 0) & (np.arange(len(train)) != codec.end), -train),
        "longest": group(is_longer & (train > 0), -sizes),
        "rarest": group((sizes > 0) & (train > 0), train),
        "never_single": group(is_single & (train == 0), by_id),
        "never": group(is_longer & (train == 0), by_id),
        "untaught": group((sizes > 0) & (train == 0) & (val > 0), -val),
        "median": float(np.median(train[is_longer])) if is_longer.any() else 0.0,
    }


def _passage(train: Sequence[Segment], dtype: str) -> tuple[int, ...]:
    parts = [_read(segment, dtype) for segment in cut(train, 0, PASSAGE)]
    return tuple(np.concatenate(parts).tolist()) if parts else ()


def _read(segment: Segment, dtype: str) -> NDArray[Any]:
    return map_tokens(segment.path, dtype, count=segment.stop)[segment.start :]
