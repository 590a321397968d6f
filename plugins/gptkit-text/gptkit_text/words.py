"""Encoder: a text's tokens as an array, fast."""

import re

import numpy as np
from numpy.typing import NDArray

from gptkit_text.codec import TokenizerCodec
from gptkit_text.word_pattern import splits_words

SPACE = r"[^\S\x1c-\x1f]"  # U+001C to U+001F are white space for Python alone
WORDS = re.compile(rf"{SPACE}*+(?:[A-Za-z]++(?![^\s!-/:-@\[-`{{-~])|[\S\x1c-\x1f]++)|{SPACE}+")
"""White space, then letters up to a mark, or whatever is no white space: there GPT-2's
pre-tokenizer always begins a new word. So a word is the same with a full stop after it."""
MOST_WORDS = 1 << 17
LONGEST = 64
"""Characters of a word that is kept; longer ones hardly come again."""


class Encoder:
    """Encodes texts as the codec's `divide` does.

    Where the pre-tokenizer is GPT-2's, each word is encoded once and kept: several times as fast.
    """

    def __init__(self, codec: TokenizerCodec) -> None:
        self.codec = codec
        self.dtype = "uint16" if codec.vocab_size <= 1 << 16 else "uint32"
        self._words = _Words(codec, self.dtype) if splits_words(codec.tokenizer) else None

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """The tokens of a text, without the end token."""
        if self._words is not None:
            tokens = b"".join(map(self._words.__getitem__, WORDS.findall(text)))
            return np.frombuffer(tokens, self.dtype)
        if not self.codec.tokenizer:
            return np.frombuffer(text.encode(), "uint8").astype(self.dtype)
        return np.array(self.codec.divide(text), self.dtype)


class _Words(dict[str, bytes]):
    """The raw tokens of the words that came lately; of a bounded number of them."""

    def __init__(self, codec: TokenizerCodec, dtype: str) -> None:
        self.divide = codec.divide
        self.dtype = dtype
        self.older: dict[str, bytes] = {}

    def __missing__(self, word: str) -> bytes:
        tokens = self.older.get(word)
        if tokens is None:
            tokens = np.array(self.divide(word), self.dtype).tobytes()
        if len(word) <= LONGEST:
            if len(self) >= MOST_WORDS:
                self.older = dict(self)
                self.clear()
            self[word] = tokens
        return tokens
