"""CharText: characters of the sonnets, of Tiny Shakespeare or of any UTF-8 text."""

from fractions import Fraction
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from gptkit.plugin import (
    Data,
    DataError,
    Dataset,
    LocalPath,
    TokenFile,
    cache_errors,
    cache_folder,
    fetch,
    note,
)
from gptkit_char_text.codec import CharCodec
from gptkit_char_text.text import TextStats, scan, text_files
from gptkit_char_text.tokens import cached_stats, encode, tokens_path

TINYSHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TINYSHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
MOST_CHARACTERS = 1 << 16


class CharText(Dataset):
    """Text, one token per character. The end of the text is the validation split."""

    contract = 1

    source: Literal["sonnets", "tinyshakespeare"] = "sonnets"
    """The sonnets, which ship with the plugin, or Tiny Shakespeare, a download of 1 MB."""
    path: LocalPath | None = None
    """A UTF-8 text file, or a folder of .txt files at any depth; used instead of source."""
    block_size: PositiveInt = 128
    """Characters of context."""
    val_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the text, at its end, for validation."""

    def load(self) -> Data:
        """Encode the text, unless it is in the cache, and split it.

        Raises:
            DataError: the text is missing, is not UTF-8, is too short, or has too few or too many
                different characters.
            DownloadError: Tiny Shakespeare cannot be downloaded.
        """
        files = self._files()
        found = cached_stats(files)
        text = found or scan(files)
        self._check_variety(text)
        train = train_length(text.characters, self.val_fraction)
        self._check_lengths(train, text.characters - train)
        if not found:
            encode(files, text)
        tokens = tokens_path(text)

        def split(start: int, stop: int) -> TokenFile:
            return TokenFile(tokens, text.dtype, start=start, stop=stop, block_size=self.block_size)

        return Data(
            train=split(0, train),
            val=split(train, text.characters),
            codec=CharCodec(vocabulary=text.vocabulary),
            vocab_size=len(text.vocabulary),
            block_size=self.block_size,
            sha256=text.sha256,
        )

    def _files(self) -> list[Path]:
        if self.path:
            return text_files(self.path)
        if self.source == "sonnets":
            return [Path(__file__).with_name("sonnets.txt")]
        with cache_errors(cache_folder("downloads")):
            return [
                fetch(
                    TINYSHAKESPEARE,
                    sha256=TINYSHAKESPEARE_SHA256,
                    size=1_115_394,
                    hint='or set path = "my.txt" in [dataset]',
                )
            ]

    @property
    def _place(self) -> str:
        return str(self.path or f'source "{self.source}"')

    def _check_variety(self, text: TextStats) -> None:
        different = len(text.vocabulary)
        if not different:
            raise DataError(
                f"{self._place}: the text is empty",
                hint="set path to a text file or a folder of them",
            )
        if "\0" in text.vocabulary:
            note(f"{self._place}: has U+0000, which no text has: perhaps it is UTF-16, or no text")
        if different < 2:
            raise DataError(
                f"{self._place}: the text has only one character, {text.vocabulary!r}, repeated",
                hint="use a text with at least two different characters",
            )
        if different > MOST_CHARACTERS:
            raise DataError(
                f"{self._place}: {different:,} different characters; at most "
                f"{MOST_CHARACTERS:,} are supported",
                hint="check that this is text, or remove rare characters",
            )

    def _check_lengths(self, train: int, val: int) -> None:
        largest = min(train, val) - 1  # a window needs one character more, for its last target
        if largest < self.block_size:
            smaller = f"set block_size to {largest} or less, or " if largest > 0 else ""
            raise DataError(
                f"{self._place}: too short for block_size {self.block_size}: {train:,} characters "
                f"for training and {val:,} for validation",
                hint=f"{smaller}use more text, or another val_fraction",
            )


def train_length(characters: int, val_fraction: float) -> int:
    """Characters in the training split, exactly: in floats, 10 * (1 - 0.9) is less than 1."""
    return int(characters * (1 - Fraction(str(val_fraction))))
