"""Encoder: a text's tokens as an array, fast."""

import re

import numpy as np
from numpy.typing import NDArray

from gptkit_text.codec import TokenizerCodec
from gptkit_text.word_pattern import splits_words

WORDS = re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+|[^\S\x1c-\x1f]+")
"""White space, then what is none: GPT-2's pre-tokenizer joins nothing across a word's end.
U+001C to U+001F are white space for Python alone."""
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
    """The raw tokens of the words that were seen; of a bounded number of them."""

    def __init__(self, codec: TokenizerCodec, dtype: str) -> None:
        self.divide = codec.divide
        self.dtype = dtype

    def __missing__(self, word: str) -> bytes:
        tokens = np.array(self.divide(word), self.dtype).tobytes()
        if len(word) <= LONGEST:
            if len(self) >= MOST_WORDS:
                self.clear()
            self[word] = tokens
        return tokens
