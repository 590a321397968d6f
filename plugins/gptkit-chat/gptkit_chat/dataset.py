"""Chat: conversations, of which a model learns the assistant's answers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, PositiveInt

from gptkit.plugin import Data, DataError, Dataset, note, progress
from gptkit_chat.conversations import find_conversations, read
from gptkit_chat.packing import Conversations, pack
from gptkit_chat.store import Stored, stored
from gptkit_chat.tokens import chat_codec
from gptkit_text.codec import TokenizerCodec
from gptkit_text.files import TextFile, common_place, digest_all, expand, total_size
from gptkit_text.sources import LOCAL, Places, is_remote, places
from gptkit_text.tokenizer import TokenizerOption

CHUNK = 1 << 20  # tokens that are looked at at once
SMALLTALK = Path(__file__).with_name("smalltalk.jsonl")


def _local(paths: Places) -> Places:
    if remote := [place for place in places(paths) if is_remote(place)]:
        raise ValueError(f"should be on this machine, got {remote[0]}: download it first")
    return paths


def _template(name: str) -> str:
    return name if name in ("auto", "chatml") else str(LOCAL.validate_python(name))


class Chat(Dataset):
    """Conversations; a model learns the assistant's answers, the rest is what it answers to."""

    contract = 1

    source: Literal["smalltalk"] = "smalltalk"
    """A few dozen short conversations, which ship with the plugin."""
    path: Annotated[Places, AfterValidator(_local)] | None = None
    """A JSONL or JSON file, a folder, or a list of them; used instead of source."""
    tokenizer: TokenizerOption = "byte"
    """"byte" or "gpt2"; { train = 4096 } to learn so many tokens from the conversations; a
    tokenizer.json, or a folder that has one, such as an imported run."""
    template: Annotated[str, AfterValidator(_template)] = "auto"
    """What is around the messages: "auto": the tokenizer's own chat template, or ChatML for a
    tokenizer that is none of a model's; "chatml"; or the path of a .jinja file."""
    special_tokens: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """What the template writes that is a token of its own; those that the tokenizer lacks are
    added to it."""
    documents: Literal["mask", "pad"] = "mask"
    """"mask": several conversations in a window, with no attention between them; "pad": one."""
    block_size: PositiveInt = 512
    """Tokens of context; longer conversations are cut after an answer."""
    val_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of the conversations for validation, chosen by a hash of their content."""
    order: Literal["sample", "shuffle"] = "shuffle"
    """Draw windows with replacement, or each once per epoch."""

    def load(self) -> Data:
        """Encode the conversations, unless they are in the cache, and put them into windows.

        Raises:
            DataError: a file is missing, a row is no conversation, or there are too few.
            DownloadError: GPT-2's vocabulary cannot be downloaded.
        """
        named = [path for place in places(self.path) for path in expand(place)]
        files = find_conversations(named or [SMALLTALK])
        key = digest_all(files)
        codec = chat_codec(
            self.tokenizer, self.template, self.special_tokens, lambda: _contents(files), key=key
        )
        found = stored(
            files, codec, source=key, block_size=self.block_size, val_fraction=self.val_fraction
        )
        place = str(common_place([file.path for file in files]))
        _tell(found, place)
        filler = _unused(found, codec) if self.documents == "mask" else 0
        train, val = (
            self._split(found, numbers, filler) for numbers in _divided(found, place, self)
        )
        return Data(
            train=train,
            val=val,
            codec=codec,
            vocab_size=codec.vocab_size,
            block_size=self.block_size,
            sha256=key,
            document_end=filler if self.documents == "mask" else None,
        )

    def _split(self, found: Stored, numbers: Sequence[int], filler: int) -> Conversations:
        lengths = np.diff(found.starts)[numbers].tolist()
        alone = self.documents == "pad"
        groups = [[i] for i in range(len(numbers))] if alone else pack(lengths, self.block_size + 1)
        return Conversations(
            found.ids,
            found.learned,
            found.starts,
            windows=[[int(numbers[i]) for i in group] for group in groups],
            block_size=self.block_size,
            filler=filler,
            shuffle=self.order == "shuffle",
        )


def _contents(files: Sequence[TextFile]) -> Iterator[str]:
    """All contents, to learn a tokenizer from."""
    with progress("reading conversations", total=total_size(files)) as advance:
        for conversation in read(files, advance):
            yield from (message["content"] for message in conversation.messages)


def _tell(found: Stored, place: str) -> None:
    told = [f"{count:,} {what}" for what, count in found.counts.items() if count]
    if told:
        note(f"{place}: conversations: {'; '.join(told)}")


def _divided(found: Stored, place: str, options: Chat) -> tuple[Sequence[int], Sequence[int]]:
    """The numbers of the conversations for training and for validation."""
    count = len(found.validation)
    if count < 2:
        raise DataError(
            f"{place}: {count} conversation{'s' * (count != 1)} that can be learned from; "
            "training and validation need one each",
            hint="use more data or a larger block_size",
        )
    val = np.flatnonzero(found.validation)
    if len(val) in (0, count):
        taken = max(1, round(count * options.val_fraction))
        note(
            f"{place}: too few conversations to choose some for validation by their content: "
            f"the last {taken:,} are taken"
        )
        val = np.arange(count - taken, count)
    return np.setdiff1d(np.arange(count), val).tolist(), val.tolist()


def _unused(found: Stored, codec: TokenizerCodec) -> int:
    """A token that no conversation has: it ends each within a window, and nothing sees it."""
    used = np.zeros(codec.vocab_size, np.bool_)
    for start in range(0, len(found.ids), CHUNK):
        used[found.ids[start : start + CHUNK]] = True
    special = [token for token, piece in enumerate(codec.token_bytes) if not piece]
    free = [token for token in special if not used[token]] or np.flatnonzero(~used).tolist()
    if not free:
        raise DataError(
            "every token of the tokenizer is in some conversation, so that none can end them",
            hint='set documents = "pad" in [dataset]',
        )
    return int(free[0])
