"""Documents in parts: what files of any kind and size give, in bounded memory."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from gptkit.plugin import note
from gptkit_text.compression import opened
from gptkit_text.decoding import Decoder, Errors
from gptkit_text.files import TextFile, common_place, reading, total_size
from gptkit_text.parquet import parquet_texts
from gptkit_text.rows import csv_texts, json_texts, jsonl_texts

PART = 1 << 20
"""Characters of a part, at most."""
Advance = Callable[[int], None]

ROWS = {"jsonl": jsonl_texts, "json": json_texts, "csv": csv_texts}


@dataclass(frozen=True, slots=True)
class Part:
    """A document's text, or a piece of it if it is longer than PART."""

    text: str
    first: bool
    """Whether a document begins here."""


class Reader:
    """Reads files as parts: the same ones each time, as long as the files stay as they are.

    Args:
        files: what to read, in this order.
        errors: whether bytes that are not UTF-8, and zero bytes, are an error or become U+FFFD.

    Raises:
        DataError: a file is not there.
    """

    def __init__(self, files: Sequence[TextFile], *, errors: Errors = "strict") -> None:
        self.files, self.errors = files, errors
        self.total = total_size(files)
        """Bytes of the files, compressed where they are."""
        self.documents = 0
        """Documents that were read so far, the present one included."""
        self.skipped = Counter[str]()
        """How much of each kind was left out so far."""
        self._told = False

    def parts(self, advance: Advance | None = None) -> Iterator[Part]:
        """All documents in parts of at most PART characters.

        A part of a longer document ends after a line feed, if it has one. Documents of nothing
        but white space are left out; this is said on stderr at the end, the first time.

        Args:
            advance: told how many bytes of the files are done, of `total`.

        Raises:
            DataError: a file cannot be read, or is not what its name says.
        """
        self.documents, self.skipped = 0, Counter[str]()
        advance = advance or (lambda count: None)
        for file in self.files:
            is_empty = True
            for document in _documents(file, self.errors, advance):
                is_empty = False
                yield from self._parts(document)
            self.skipped["files without rows"] += is_empty
        self._tell()

    def _parts(self, document: Iterable[str]) -> Iterator[Part]:
        first = True
        for piece in _pieces(document):
            if first and piece.isspace():
                continue  # so that memory stays bounded if a document begins with much of it
            self.documents += first
            yield Part(piece, first)
            first = False
        self.skipped["empty documents"] += first

    def _tell(self) -> None:
        told = ", ".join(f"{count:,} {kind}" for kind, count in self.skipped.items() if count)
        if told and not self._told:
            note(f"{common_place([file.path for file in self.files])}: {told}: skipped")
        self._told = True


def _documents(file: TextFile, errors: Errors, advance: Advance) -> Iterator[Iterable[str]]:
    """The documents of a file, each in chunks that are to be read before the next document."""
    decoder = Decoder(file.path, errors)
    with reading(file.path):
        if file.kind == "parquet":
            texts = parquet_texts(file.path, decoder, file.text_key, advance)
            yield from ((text,) for text in texts)
            return
        with opened(file.path, file.compression, advance) as stream:
            if file.kind == "text":
                yield decoder.chunks(stream)
            else:
                texts = ROWS[file.kind](stream, decoder, file.text_key)
                yield from ((text,) for text in texts)


def _pieces(chunks: Iterable[str]) -> Iterator[str]:
    """A text in pieces of at most PART characters, however it comes; none if it is empty."""
    text = ""
    for chunk in chunks:
        text += chunk
        start = 0
        while len(text) - start > PART:
            end = text.rfind("\n", start, start + PART) + 1 or start + PART
            yield text[start:end]
            start = end
        text = text[start:]
    if text:
        yield text
