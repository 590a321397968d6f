"""A chat with a model: what was said so far, within the model's context. Imports no torch."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field

import gptkit
from gptkit.codec import PromptError
from gptkit_chat.encoding import ChatEncoder, template_of
from gptkit_chat.template import ChatError
from gptkit_text.codec import TokenizerCodec

ROOM = 4
"""A prompt leaves one part in so many of the context to the answer, if the answer may need it."""


@dataclass
class Settings:
    """How answers are drawn."""

    tokens: int = 512
    """At most, of an answer."""
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    """Of the next answer; each answer has the seed after that of the one before."""


@dataclass
class Session:
    """The messages of a chat, and the model that answers.

    Args:
        model: of text, with a tokenizer that has a chat template or the tokens of ChatML.
        settings: of the answers.
        system: what the model is told before the chat; "" for nothing.

    Raises:
        UsageError: the model cannot chat.
    """

    model: gptkit.Model
    settings: Settings = field(default_factory=Settings)
    system: str = ""

    def __post_init__(self) -> None:
        codec = self.model.codec
        if not isinstance(codec, TokenizerCodec):
            raise gptkit.UsageError(
                f"this model cannot chat: its codec, {type(codec).__name__}, has no chat template",
                hint='train one with [dataset] use = "chat", or import one that was',
            )
        try:
            self.codec = template_of(codec)
            self._encoder = ChatEncoder(self.codec)
        except ChatError as error:
            raise gptkit.UsageError(
                f"this model cannot chat: {error}",
                hint='train it with [dataset] use = "chat", which gives it a template; '
                "gptkit sample continues a text",
            ) from error
        self.messages: list[dict[str, str]] = []
        self.seed = self.settings.seed
        self.dropped = 0
        """Exchanges that the latest answer did not see, since the context is too small."""
        self.full = False
        """Whether the latest answer ended because the context was full."""
        self.cut = False
        """Whether it ended at the most tokens of an answer."""

    def reset(self) -> None:
        """Forget all messages; the next answers have the first seeds again."""
        self.messages, self.seed = [], self.settings.seed

    def answer(self, text: str) -> Iterator[str]:
        """Draw the answer to a message, in whole characters as they come.

        Both are then part of the chat, also if the iterator is closed before its end; an answer of
        which nothing came is not, nor is its message.

        Raises:
            UsageError: the message does not fit into the context, or the template refuses it.
        """
        ids, kept = self._prompt(text)
        room = self.model.block_size + 1 - len(ids)  # the last token is never read
        count = min(self.settings.tokens, room)
        drawn = self.model.stream_tokens(
            ids,
            tokens=count,
            seed=self.seed,
            temperature=self.settings.temperature,
            top_k=self.settings.top_k,
            top_p=self.settings.top_p,
            stop_tokens=self.codec.stop_tokens,
        )
        self.dropped = (len(self.messages) - len(kept)) // 2
        return self._answered(text, kept, drawn, count, full=room <= self.settings.tokens)

    def _answered(
        self,
        text: str,
        kept: list[dict[str, str]],
        drawn: Iterator[int],
        count: int,
        *,
        full: bool,
    ) -> Iterator[str]:
        utf8, pieces, number = codecs.getincrementaldecoder("utf-8")("replace"), [""], 0
        known = self.codec.token_bytes
        try:
            for token in drawn:
                number += 1
                if piece := utf8.decode(known[token]):
                    pieces.append(piece)
                    yield piece
            if rest := utf8.decode(b"", final=True):
                pieces.append(rest)
                yield rest
        finally:
            unfinished = number == count
            self.full, self.cut = unfinished and full, unfinished and not full
            if answer := "".join(pieces):
                said = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
                self.messages = [*kept, *said]
                self.seed += 1

    def _prompt(self, text: str) -> tuple[list[int], list[dict[str, str]]]:
        """The ids of a prompt that fits, and the earlier messages that are in it.

        The oldest exchanges are left out until it fits; the system's message stays.
        """
        block_size = self.model.block_size
        limit = block_size + 1 - min(self.settings.tokens, max(1, block_size // ROOM))
        system = [{"role": "system", "content": self.system}] if self.system else []
        kept, asked = list(self.messages), {"role": "user", "content": text}
        while True:
            try:
                ids = self._encoder.prompt([*system, *kept, asked])
            except (ChatError, PromptError) as error:
                raise gptkit.UsageError(str(error)) from error
            if len(ids) <= limit:
                return ids, kept
            if not kept:
                raise gptkit.UsageError(
                    f"the message is too long: {len(ids):,} tokens with all around it, and the "
                    f"model's context of {block_size:,} has room for {limit:,}",
                    hint="write a shorter one" + (", or a shorter /system" if system else ""),
                )
            kept = kept[2:]
