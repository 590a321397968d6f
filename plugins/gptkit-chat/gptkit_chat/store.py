"""Encoded conversations in the cache: made once for the same files, tokenizer and options."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
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

FORMAT = 2
"""Of the files: another one makes those in the cache unused."""
ARRAYS = {"ids": np.uint32, "learned": np.bool_, "starts": np.int64, "validation": np.bool_}
FIRST = 8
"""Answers of a long conversation that are encoded at first."""
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
            name: _mapped(folder / name, dtype) for name, dtype in ARRAYS.items()
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
        counts = _Writer(encoder, block_size, val_fraction).run(files, new)
        write_atomically(new / "counts.json", json.dumps(counts).encode())
        digests = {path.name: digest(path) for path in _files(new)}
        write_atomically(new / "digests.json", json.dumps(digests).encode())

    with cache_errors(folder):
        return Stored.open(cached(folder, build, fits=_is_whole))


class _Writer:
    """Encodes conversations one after the other."""

    def __init__(self, encoder: ChatEncoder, block_size: int, val_fraction: float) -> None:
        self.encoder, self.most, self.val_fraction = encoder, block_size + 1, val_fraction
        self.counts = Counter[str]()

    def run(self, files: Sequence[TextFile], folder: Path) -> dict[str, int]:
        """Write the arrays of `Stored` to a folder; returns its counts."""
        place = common_place([file.path for file in files])
        with ExitStack() as stack:
            advance = stack.enter_context(
                progress(f"encoding {place.name}", total=total_size(files))
            )
            opened = {name: stack.enter_context((folder / name).open("wb")) for name in ARRAYS}

            def put(**values: Any) -> None:
                for name, value in values.items():
                    opened[name].write(np.array(value, ARRAYS[name]).tobytes())

            end = 0
            put(starts=end)
            for conversation in read(files, advance):
                if (found := self._encoded(conversation)) is not None:
                    end += len(found.ids)
                    validation = is_validation(conversation.key, self.val_fraction)
                    put(ids=found.ids, learned=found.learned, starts=end, validation=validation)
        return dict(self.counts)

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
        """As many whole answers as fit; one that is far too long is not encoded whole."""
        ends = [i + 1 for i, each in enumerate(messages) if each["role"] == "assistant"]
        fitting, long = None, None
        low, high = 0, len(ends) + 1  # so many answers fit, and so many do not
        tried = min(FIRST, len(ends))
        while low + 1 < high:
            found = self.encoder.encode(messages[: ends[tried - 1]])
            if len(found.ids) <= self.most:
                fitting, low = found, tried
            else:
                long, high = found, tried
            tried = (low + high) // 2 if long else min(2 * low, len(ends))
        self.counts[CUT] += fitting is not None and low < len(ends)
        return fitting or self._cut(long)

    def _cut(self, found: Encoded | None) -> Encoded | None:
        """The beginning of a conversation whose first answer does not fit whole."""
        assert found
        cut = Encoded(found.ids[: self.most], found.learned[: self.most])
        if any(cut.learned[1:]):
            self.counts[CUT_WITHIN] += 1
            return cut
        self.counts[LEFT_OUT] += 1
        return None


def _mapped(path: Path, dtype: Any) -> NDArray[Any]:
    """The numbers in a file; what is not looked at takes no memory."""
    if path.stat().st_size == 0:  # nothing that could be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")


def _files(folder: Path) -> Iterator[Path]:
    yield from (folder / name for name in ARRAYS)
    yield folder / "counts.json"


def _is_whole(folder: Path) -> bool:
    digests = read_json(folder / "digests.json")
    return bool(digests == {path.name: digest(path) for path in _files(folder)})
