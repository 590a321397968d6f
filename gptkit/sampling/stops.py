"""What ends a sample: stop tokens, and stop texts, also across tokens. Imports no torch."""

import codecs
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gptkit.codec import TextCodec


@dataclass(frozen=True)
class Stops:
    """What ends a sample, before itself."""

    tokens: tuple[int, ...] = ()
    """Token ids."""
    texts: tuple[bytes, ...] = ()
    """Texts in UTF-8, none of them empty."""
    token_bytes: Sequence[bytes] = ()
    """The bytes of every token, by id; needed if there are texts."""

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.tokens or self.texts)


class StopSearch:
    """Searches bytes that come in parts for the stop text that is complete first."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts, self.found = texts, False
        self.held = b""
        """The last bytes, if they may be the beginning of a stop text."""

    def feed(self, part: bytes) -> bytes:
        """Search on; returns the bytes that are now certain to come before any stop text."""
        text = self.held + part
        matches = [(at + len(stop), at) for stop in self.texts if (at := text.find(stop)) >= 0]
        if matches:
            self.found, self.held = True, b""
            return text[: min(matches)[1]]
        cut = len(text) - max((_overlap(text, stop) for stop in self.texts), default=0)
        self.held = text[cut:]
        return text[:cut]


class Sample:
    """One sample while it is drawn: its start, then the drawn tokens up to a stop.

    Args:
        start: the token ids that it begins with.
        stops: what ends it; searched in the drawn tokens only.
        count: it also ends when this many tokens were drawn.
    """

    def __init__(self, start: Sequence[int], stops: Stops, *, count: int | None = None) -> None:
        self.start, self.stops, self.count, self.ended = list(start), stops, count, False
        self._drawn: list[int] = []
        self._search = StopSearch(stops.texts)

    def add(self, token: int) -> None:
        """Take the token that was drawn next; one after the end is ignored."""
        if self.ended or token in self.stops.tokens:
            self.ended = True
            return
        self._drawn.append(token)
        if self.stops.texts:
            self._search.feed(self.stops.token_bytes[token])
        self.ended = self._search.found or self.size == self.count

    @property
    def size(self) -> int:
        """How many tokens were drawn."""
        return len(self._drawn)

    @property
    def tokens(self) -> list[int]:
        """The start and the drawn tokens; of a text that ends within a token, those before it."""
        if not self._search.found:
            return [*self.start, *self._drawn]
        pieces = [self.stops.token_bytes[token] for token in self._drawn]
        size = len(StopSearch(self.stops.texts).feed(b"".join(pieces)))
        whole = sum(end <= size for end in itertools.accumulate(map(len, pieces)))
        return [*self.start, *self._drawn[:whole]]

    def text(self, codec: TextCodec) -> str:
        """The start and the drawn text up to a stop; bytes that are not UTF-8 become U+FFFD."""
        return "".join(self.pieces(codec, [None]))

    def new_tokens(self, steps: Iterable[object]) -> Iterator[int]:
        """The drawn tokens while steps add them, without the stop token."""
        given = 0
        for _ in steps:
            yield from self._drawn[given:]
            given = len(self._drawn)

    def pieces(self, codec: TextCodec, steps: Iterable[object]) -> Iterator[str]:
        """The whole characters of `text` while steps add tokens.

        What may still become a stop text is held back.
        """
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        search, given = StopSearch(self.stops.texts), 0
        if start := utf8.decode(codec.decode(self.start)):
            yield start
        for _ in steps:
            new, given = self._drawn[given:], len(self._drawn)
            if piece := utf8.decode(search.feed(codec.decode(new))):
                yield piece
        if rest := utf8.decode(search.held, final=True):
            yield rest


def _overlap(text: bytes, stop: bytes) -> int:
    """Length of the longest end of a text that is a beginning of a stop text."""
    longest = min(len(text), len(stop) - 1)
    return next(n for n in range(longest, -1, -1) if text.endswith(stop[:n]))
