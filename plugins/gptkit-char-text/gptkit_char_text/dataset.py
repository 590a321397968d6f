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
)
from gptkit_char_text.codec import CharCodec
from gptkit_char_text.text import Survey, find_files, survey
from gptkit_char_text.tokens import encoded, surveyed

TINYSHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TINYSHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
MOST_CHARACTERS = 1 << 16


class CharText(Dataset):
    """Text, one token per character; its tail is the validation split."""

    source: Literal["sonnets", "tinyshakespeare"] = "sonnets"
    """The sonnets, which ship with the plugin, or Tiny Shakespeare, a download of 1 MB."""
    path: LocalPath | None = None
    """A UTF-8 text file, or a folder of .txt files at any depth; takes the place of source."""
    block_size: PositiveInt = 128
    """Characters of context."""
    val_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the text, at its end, that is kept for validation."""

    def load(self) -> Data:
        """Encode the text, unless the cache has it, and split it.

        Raises:
            DataError: the text is missing, not UTF-8, too short or too varied.
            DownloadError: Tiny Shakespeare cannot be fetched.
        """
        files = self._files()
        text = surveyed(files) or survey(files)
        self._check_variety(text)
        train = train_length(text.characters, self.val_fraction)
        self._check_lengths(train, text.characters - train)
        tokens = encoded(files, text)

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
            return find_files(self.path)
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

    def _check_variety(self, text: Survey) -> None:
        different = len(text.vocabulary)
        if not different:
            raise DataError(f"{self._place}: the text is empty", hint="let path name a text")
        if different < 2:
            raise DataError(
                f"{self._place}: the text is {text.vocabulary!r} over and over",
                hint="training needs at least two different characters",
            )
        if different > MOST_CHARACTERS:
            raise DataError(
                f"{self._place}: {different:,} different characters, at most "
                f"{MOST_CHARACTERS:,} can be told apart",
                hint="check that this is text, or leave rare characters out",
            )

    def _check_lengths(self, train: int, val: int) -> None:
        largest = min(train, val) - 1  # the target of a window's last character is one more
        if largest < self.block_size:
            smaller = f"set block_size to {largest} or less, or " if largest > 0 else ""
            raise DataError(
                f"{self._place}: too short for block_size {self.block_size}: {train:,} characters "
                f"for training and {val:,} for validation",
                hint=f"{smaller}use more text, or another val_fraction",
            )


def train_length(characters: int, val_fraction: float) -> int:
    """Characters before the validation split, counted in decimals: 0.9 of 10 leaves 1, not 0."""
    return int(characters * (1 - Fraction(str(val_fraction))))
