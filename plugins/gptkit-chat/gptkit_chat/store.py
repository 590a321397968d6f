"""Encoded conversations in the cache: made once for the same files, tokenizer and options."""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gptkit.codec import PromptError
from gptkit.plugin import (
    DataError,
    cache_errors,
    cache_folder,
    cached,
    digest,
    progress,
    read_json,
    write_atomically,
)
from gptkit_chat.conversations import Conversation, Messages, read
from gptkit_chat.encoding import ChatEncoder, Encoded
from gptkit_chat.template import DAY, ChatError
from gptkit_text.codec import TokenizerCodec
from gptkit_text.encode import is_validation
from gptkit_text.files import TextFile, common_place, total_size

FORMAT = 1
"""Of the files: another one makes those in the cache unused."""
ARRAYS = {"ids": np.uint32, "learned": np.bool_, "starts": np.int64, "validation": np.bool_}
CUT, CUT_WITHIN, LEFT_OUT, NO_ANSWER = (
    "cut after the last answer that fits into block_size",
    "cut within their first answer",
    "left out, since block_size ends before their first answer",
    "left out, since they have no answer, or an empty one",
)


@dataclass(frozen=True)
class Stored:
    """Encoded conversations."""

    ids: NDArray[np.uint32]
    learned: NDArray[np.bool_]
    starts: NDArray[np.int64]
    """Where each conversation begins, and where the last one ends."""
    validation: NDArray[np.bool_]
    """Which conversations are for validation."""
    counts: dict[str, int]
    """How many were changed or left out, by what was done."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the files of a folder."""
        arrays: dict[str, Any] = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS
        }
        return cls(**arrays, counts=read_json(folder / "counts.json"))


def stored(
    files: Sequence[TextFile],
    codec: TokenizerCodec,
    *,
    source: str,
    block_size: int,
    val_fraction: float,
) -> Stored:
    """The conversations of files, encoded unless they are in the cache.

    Args:
        files: JSONL and JSON files.
        codec: with a chat template.
        source: digest of the files.
        block_size: tokens of a window; longer conversations are cut.
        val_fraction: share of the conversations for validation.

    Raises:
        DataError: a row is no conversation, or the template refuses it; or the cache cannot be
            written.
    """
    options = [FORMAT, source, codec.model_dump(mode="json"), block_size, val_fraction]
    name = hashlib.sha256(json.dumps(options).encode()).hexdigest()
    folder = cache_folder("chat") / name
    encoder = ChatEncoder(codec, now=DAY)

    def build(new: Path) -> None:
        _write(new, _Writer(encoder, block_size, val_fraction).run(files))

    with cache_errors(folder):
        return Stored.open(cached(folder, build, fits=_is_whole))


class _Writer:
    """Encodes conversations one after the other."""

    def __init__(self, encoder: ChatEncoder, block_size: int, val_fraction: float) -> None:
        self.encoder, self.most, self.val_fraction = encoder, block_size + 1, val_fraction
        self.counts = Counter[str]()

    def run(self, files: Sequence[TextFile]) -> Stored:
        ids, learned, sizes, validation = array("I"), bytearray(), [0], []
        place = common_place([file.path for file in files])
        with progress(f"encoding {place.name}", total=total_size(files)) as advance:
            for conversation in read(files, advance):
                if (found := self._encoded(conversation)) is not None:
                    ids.extend(found.ids)
                    learned.extend(found.learned)
                    sizes.append(len(found.ids))
                    validation.append(is_validation(conversation.key, self.val_fraction))
        return Stored(
            np.array(ids, np.uint32),
            np.frombuffer(learned, np.bool_),
            np.cumsum(sizes, dtype=np.int64),
            np.array(validation, np.bool_),
            dict(self.counts),
        )

    def _encoded(self, conversation: Conversation) -> Encoded | None:
        """The tokens of a conversation that fit; None if there is nothing to learn from it."""
        answers = [each for each in conversation.messages if each["role"] == "assistant"]
        if not answers or not all(each["content"].strip() for each in answers):
            self.counts[NO_ANSWER] += 1
            return None
        try:
            return self._fitting(conversation.messages)
        except (ChatError, PromptError) as error:
            raise DataError(
                f"{conversation.place}: {error}",
                hint="take the row out, or give another template in [dataset]",
            ) from error

    def _fitting(self, messages: Messages) -> Encoded | None:
        ends = [i + 1 for i, each in enumerate(messages) if each["role"] == "assistant"]
        for end in reversed(ends):
            found = self.encoder.encode(messages[:end])
            if len(found.ids) <= self.most:
                self.counts[CUT] += end < ends[-1]
                return found
        cut = Encoded(found.ids[: self.most], found.learned[: self.most])
        if any(cut.learned[1:]):
            self.counts[CUT_WITHIN] += 1
            return cut
        self.counts[LEFT_OUT] += 1
        return None


def _write(folder: Path, found: Stored) -> None:
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(found, name))
    write_atomically(folder / "counts.json", json.dumps(found.counts).encode())
    digests = {path.name: digest(path) for path in _files(folder)}
    write_atomically(folder / "digests.json", json.dumps(digests).encode())


def _files(folder: Path) -> Iterator[Path]:
    yield from (folder / f"{name}.npy" for name in ARRAYS)
    yield folder / "counts.json"


def _is_whole(folder: Path) -> bool:
    digests = read_json(folder / "digests.json")
    return bool(digests == {path.name: digest(path) for path in _files(folder)})
