"""A byte-level BPE, trained on a sample of a text."""

import hashlib
import heapq
import re
from collections.abc import Iterable, Iterator
from threading import Thread

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gptkit.plugin import progress
from gptkit_text.tokenizer_file import prepare
from gptkit_text.words import WORDS

MOST_DIFFERENT = 6 << 20
"""Bytes of different words to learn from: the library takes about 120 times as much memory."""
PIECE = 200
"""Bytes of memory that a piece of the sample takes beside its text."""
SAMPLED = re.compile(r".{1,65536}(?=\s|\Z)|.{1,65536}", re.DOTALL)
"""A piece of text for the sample; it ends with a word if it can."""


def train_bpe(texts: Iterable[str], *, tokens: int, sample_bytes: int, end: bool) -> str:
    """Train a byte-level BPE with GPT-2's pre-tokenizer (Radford et al. 2019).

    Args:
        texts: what to learn from.
        tokens: size of the vocabulary, at most.
        sample_bytes: of memory for the text to learn from; MOST_DIFFERENT limits it, too.
        end: add an end token, as the last one.

    Returns:
        The text of a `tokenizer.json`, the same on every machine.
    """
    sample = sample_texts(texts, sample_bytes)
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens - end,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    _learn(library, trainer, list(few_words(sample)))
    return prepare(library.to_str())[0] if end else library.to_str()


def sample_texts(texts: Iterable[str], size: int) -> list[str]:
    """Pieces of the texts, which take `size` bytes at most: those with the smallest hashes.

    So it does not matter in which order the texts come; memory does not grow with them.
    """
    heap: list[tuple[int, str, int]] = []  # the largest hash first
    total, ceiling = 0, 1 << 64
    for piece in (piece for text in texts for piece in SAMPLED.findall(text)):
        contents = piece.encode()
        rank = int.from_bytes(hashlib.blake2b(contents, digest_size=8).digest(), "big")
        if rank >= ceiling:
            continue
        taken = len(contents) + PIECE
        heapq.heappush(heap, (-rank, piece, taken))
        total += taken
        while total > size:
            ceiling, _, dropped = heapq.heappop(heap)
            ceiling, total = -ceiling, total - dropped
    return [piece for _, piece, _ in sorted(heap, reverse=True)]


def few_words(sample: Iterable[str]) -> Iterator[str]:
    """The first pieces, until MOST_DIFFERENT is reached: text without spaces, or of ids, does."""
    seen, size = set[str](), 0
    for piece in sample:
        yield piece
        new = set(WORDS.findall(piece)) - seen
        seen |= new
        size += sum(len(word.encode()) for word in new)
        if size >= MOST_DIFFERENT:
            return


def _learn(library: Tokenizer, trainer: trainers.BpeTrainer, sample: list[str]) -> None:
    """Train in a thread, since the library minds no signal: Ctrl-C ends this one at once."""
    faults = list[BaseException]()

    def train() -> None:
        try:
            library.train_from_iterator(sample, trainer)
        except BaseException as error:
            faults.append(error)

    thread = Thread(target=train, daemon=True)
    thread.start()
    with progress("learning the tokenizer", unit="seconds") as advance:
        while thread.is_alive():
            thread.join(1.0)
            advance(1)
    if faults:
        raise faults[0]
