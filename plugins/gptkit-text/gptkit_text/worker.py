"""A worker process, `python -m gptkit_text.worker`: encodes blocks of text that come on stdin.

It is a program of its own, neither a fork nor a child of `multiprocessing`: so it also works from
notebooks, from scripts without a main guard and beside the threads of torch. It ends when stdin
ends, as it does when the process that started it is killed.
"""

import os
import re
import signal
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gptkit_text.codec import TokenizerCodec
from gptkit_text.words import Encoder

NO_LETTERS = bytes(byte for byte in range(128) if not chr(byte).isalnum())
PUNCTUATION = re.compile("[\u00a0\u2000-\u206f\u3000-\u303f]+")
"""Spaces, quotation marks, dashes and the like beyond ASCII."""


@dataclass(frozen=True, slots=True)
class Block:
    """Documents, or pieces of long ones, that are encoded at once."""

    texts: Sequence[bytes]
    """In UTF-8."""
    firsts: NDArray[np.bool_]
    """(n,), whether a document begins with this text."""
    validation: NDArray[np.bool_]
    """(n,), whether it is for validation."""


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """The tokens of a block's texts, one text after the other."""

    lengths: NDArray[np.int64]
    """(n,), how many tokens each text has."""
    hashes: NDArray[np.uint64]
    """(n,), equal for texts that differ only in case, spaces and punctuation."""
    tokens: NDArray[Any]
    """(sum of the lengths,), of the codec's type."""


class BlockEncoder:
    """Encodes blocks in this process.

    An end token begins every document, if the codec has one; if prompts begin with another token,
    that one follows it.
    """

    def __init__(self, codec: TokenizerCodec) -> None:
        self._encoder = Encoder(codec)
        self.dtype = self._encoder.dtype
        marks = dict.fromkeys((codec.end, codec.start_token))
        self._start = np.array([token for token in marks if token is not None], self.dtype)
        self._spaced = codec.spaced

    def encode(self, texts: Sequence[bytes], firsts: NDArray[np.bool_]) -> EncodedBlock:
        """The tokens of some texts."""
        lengths = np.zeros(len(texts), np.int64)
        hashes = np.zeros(len(texts), np.uint64)
        found = [self._start[:0]]
        for i, data in enumerate(texts):
            text = data.decode()
            tokens = self._encoder.encode(self._spaced(text) if firsts[i] else text)
            start = self._start if firsts[i] else self._start[:0]
            found += (start, tokens)
            lengths[i] = len(start) + len(tokens)
            hashes[i] = _hash(text)
        return EncodedBlock(lengths, hashes, np.concatenate(found))


def send(file: IO[bytes], *parts: bytes | memoryview) -> None:
    """Write some buffers, each with its length before it."""
    for part in parts:
        file.write(struct.pack("<Q", len(part)))
        file.write(part)
    file.flush()


def receive(file: IO[bytes], parts: int) -> list[bytes]:
    """Read as many buffers as were sent at once.

    Raises:
        EOFError: the stream ends before them.
    """
    return [_read(file, *struct.unpack("<Q", _read(file, 8))) for _ in range(parts)]


def main() -> None:
    """Read a codec, then answer blocks with their tokens until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to this process, too
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints does not get between the answers
    with suppress(EOFError, BrokenPipeError):
        (codec,) = receive(questions, 1)
        encoder = BlockEncoder(TokenizerCodec.model_validate_json(codec))
        while True:
            sizes, firsts, data = receive(questions, 3)
            block = encoder.encode(_cut(data, sizes), np.frombuffer(firsts, np.bool_))
            send(answers, *(x.data.cast("B") for x in (block.lengths, block.hashes, block.tokens)))
    os._exit(0)  # at once: nothing is left to write, and no one to read it


def _hash(text: str) -> int:
    """64 bits that do not depend on case, spaces and punctuation."""
    folded = text.casefold()
    if not folded.isascii():
        folded = PUNCTUATION.sub("", folded)
    letters = folded.encode().translate(None, NO_LETTERS) or text.strip().encode()
    return int.from_bytes(blake2b(letters, digest_size=8).digest(), "little")


def _read(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _cut(data: bytes, sizes: bytes) -> list[bytes]:
    ends = np.frombuffer(sizes, np.int64).cumsum().tolist()
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


if __name__ == "__main__":
    main()
