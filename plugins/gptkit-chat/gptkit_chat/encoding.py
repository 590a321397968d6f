"""Conversations to token ids, and which of them the assistant wrote. Imports no torch.

What a template writes may be special tokens; what people wrote is text, whatever it spells.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import accumulate, pairwise

from gptkit_chat.template import CHATML, CHATML_TOKENS, ChatError, Template
from gptkit_text.codec import TokenizerCodec

MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Characters that no text has: Unicode keeps them for a program's own use."""
Span = tuple[int, int]
"""Begin and end of a part of a text."""


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids."""

    ids: list[int]
    learned: list[bool]
    """Which ids the assistant writes, the end of an answer included."""


@dataclass(frozen=True)
class Marks:
    """Three characters that a conversation does not have."""

    open: str
    """Before a content of the assistant's."""
    close: str
    """After it."""
    split: str
    """Within what spells a special token, and around the contents of others."""

    def without(self, text: str) -> str:
        """The text without marks."""
        return text.translate({ord(each): None for each in (self.open, self.close, self.split)})


class ChatEncoder:
    """Encodes conversations for a codec that has a chat template.

    Args:
        codec: of the model.
        now: what the template takes for the present time; None for the clock's.

    Raises:
        ChatError: the codec has no template, or one that is no Jinja.
    """

    def __init__(self, codec: TokenizerCodec, *, now: datetime | None = None) -> None:
        if codec.chat_template is None:
            raise ChatError("there is no chat template")
        self.codec, self._template = codec, Template(codec.chat_template, now=now)
        spec = json.loads(codec.tokenizer_json())
        self._special = {each["content"]: each for each in spec["added_tokens"] if each["special"]}
        spelt = {each["id"]: content for content, each in self._special.items()}
        ids = {"bos_token": codec.begin, "eos_token": codec.end}
        self._names = {name: spelt[token] for name, token in ids.items() if token is not None}

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The token ids after which the assistant's answer follows.

        Raises:
            ChatError: the template refuses the messages.
        """
        messages = self._sayable(messages)
        marks = _marks_for(messages)
        text = self._render(self._marked(messages, marks), answering=True)
        if marks.without(text) != self._render(messages, answering=True):
            text = self._unmarked(messages, text=self._render(messages, answering=True))
        return [token for part in self._parts(text, marks, []) for token in part.ids]

    def encode(self, messages: Sequence[Mapping[str, str]]) -> Encoded:
        """The token ids of a conversation, and which ones the assistant writes.

        An answer is what follows the template's own beginning of it, or else its content, up to
        the special token behind it, which belongs to it.

        Raises:
            ChatError: the template refuses the messages, or shows no end of an answer.
        """
        messages = self._sayable(messages)
        marks, plain = _marks_for(messages), self._render(messages)
        marked: Sequence[Mapping[str, str]] = self._marked(messages, marks)
        text = self._render(marked)
        if marks.without(text) != plain:
            text, marked = self._unmarked(messages, text=plain), messages
        contents = _contents(text, marks, messages)
        spans = [
            self._answer(text, marked[:number], marks, contents.get(number))
            for number, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        parts = list(self._parts(text, marks, spans))
        return Encoded(
            [token for part in parts for token in part.ids],
            [learned for part in parts for learned in part.learned],
        )

    def _render(self, messages: Sequence[Mapping[str, str]], *, answering: bool = False) -> str:
        return self._template.render(messages, answering=answering, names=self._names)

    def _sayable(self, messages: Sequence[Mapping[str, str]]) -> Sequence[Mapping[str, str]]:
        """The messages without special tokens of one character, as the codec has a text."""
        single = {ord(name): None for name in self._special if len(name) == 1}
        if not single:
            return messages
        return [
            dict(message) | {"content": message["content"].translate(single)}
            for message in messages
        ]

    def _marked(self, messages: Sequence[Mapping[str, str]], marks: Marks) -> list[dict[str, str]]:
        """The messages with marks around and within their contents, but not around their spaces."""
        around = {"assistant": (marks.open, marks.close)}

        def marked(role: str, content: str) -> str:
            body = content.strip()
            if not body:
                return content
            before, _, after = content.partition(body)
            left, right = around.get(role, (marks.split, marks.split))
            body = self._spelling.sub(rf"\1{marks.split}", body)
            return f"{before}{left}{body}{right}{after}"

        return [
            dict(message) | {"content": marked(message["role"], message["content"])}
            for message in messages
        ]

    def _unmarked(self, messages: Sequence[Mapping[str, str]], *, text: str) -> str:
        """The text itself, if it may go without marks: where the template reads the contents."""
        if any(self._spelling.search(message["content"]) for message in messages):
            raise ChatError(
                "the chat template changes a content that spells a special token, so that it "
                "cannot be told from the template's own"
            )
        return text

    def _answer(
        self,
        text: str,
        before: Sequence[Mapping[str, str]],
        marks: Marks,
        content: Span | None,
    ) -> Span:
        """Where an answer is: from the template's beginning of it to the special token after it.

        Args:
            text: of the whole conversation.
            before: the messages before the answer.
            marks: in both.
            content: where the answer's content is in the text, if that is known.
        """
        begun = self._render(before, answering=True)
        opened, closed = content or (None, 0)
        start = len(begun) if text.startswith(begun) else opened
        if start is None or (content and start > closed):
            raise ChatError("the chat template does not show where an answer begins")
        end = self._special_pattern.search(text, max(start, closed))
        if end is None:
            raise ChatError("the chat template has no special token that ends an answer")
        return start, end.end()

    def _parts(self, text: str, marks: Marks, spans: Sequence[Span]) -> Iterator[Encoded]:
        """The tokens of the special tokens and of the texts between them, in order."""
        position = 0
        for found in self._special_pattern.finditer(text):
            yield self._text(text, (position, found.start()), marks, spans)
            token = self._special[found.group().strip()]["id"]
            learned = any(start <= found.start() < end for start, end in spans)
            yield Encoded([token], [learned])
            position = found.end()
        yield self._text(text, (position, len(text)), marks, spans)

    def _text(self, text: str, part: Span, marks: Marks, spans: Sequence[Span]) -> Encoded:
        """The tokens of a part of the text; one that the assistant began is learned whole."""
        begin, end = part
        body = marks.without(text[begin:end])
        if not body:
            return Encoded([], [])
        space = self.codec.space == "always" or (
            self.codec.space == "missing" and begin == 0 and body[0] != " "
        )
        prefix = " " if space else ""
        ranges = []
        for start, stop in (each for each in spans if each[0] < end and each[1] > begin):
            low, high = (
                len((prefix + marks.without(text[begin : min(max(each, begin), end)])).encode())
                for each in (start, stop)
            )
            ranges += [(low, high)] * (high > low)
        return self._divided(prefix + body, ranges)

    def _divided(self, text: str, ranges: Sequence[Span]) -> Encoded:
        """The tokens of a text, those learned that overlap a range of its bytes."""
        ids, data = self.codec.divide(text), text.encode()
        if self.codec.decode(ids) != data and ranges:  # the tokenizer changes texts
            edges = sorted({0, len(data), *(edge for span in ranges for edge in span)})
            found = Encoded([], [])
            for low, high in pairwise(edges):
                new = self.codec.divide(data[low:high].decode())
                inside = any(start <= low < stop for start, stop in ranges)
                found.ids.extend(new)
                found.learned.extend([inside] * len(new))
            return found
        ends = list(accumulate(len(self.codec.token_bytes[token]) for token in ids))
        begins = [0, *ends[:-1]] if ends else []
        return Encoded(
            ids,
            [
                any(low < stop and high > start for start, stop in ranges)
                for low, high in zip(begins, ends, strict=True)
            ],
        )

    @cached_property
    def _spelling(self) -> re.Pattern[str]:
        """Finds the first character of all that spells a special token, also where two overlap."""
        spelt = "|".join(map(re.escape, self._special)) or "(?!)"
        return re.compile(f"(?={spelt})(.)", re.DOTALL)

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        """Finds a special token, with the spaces that belong to it."""
        longest_first = sorted(self._special.values(), key=lambda each: -len(each["content"]))
        written = [
            (r"\s*" * each["lstrip"]) + re.escape(each["content"]) + (r"\s*" * each["rstrip"])
            for each in longest_first
        ]
        return re.compile("|".join(written) or "(?!)")


def template_of(codec: TokenizerCodec) -> TokenizerCodec:
    """The codec with a chat template: its own, or ChatML's if it has the tokens for that.

    Raises:
        ChatError: it has neither.
    """
    if codec.chat_template is not None:
        return codec
    added = {each["content"] for each in json.loads(codec.tokenizer_json())["added_tokens"]}
    if not added.issuperset(CHATML_TOKENS):
        raise ChatError("the model has no chat template, nor the tokens of ChatML")
    end = added_id(codec, CHATML_TOKENS[1])
    stops = tuple(dict.fromkeys((end, *codec.stop_tokens)))
    return TokenizerCodec(**codec.model_dump() | {"chat_template": CHATML, "stops": stops})


def added_id(codec: TokenizerCodec, name: str) -> int | None:
    """The id of a special token by its spelling; None if there is none."""
    added = json.loads(codec.tokenizer_json())["added_tokens"]
    return next((each["id"] for each in added if each["content"] == name and each["special"]), None)


def _marks_for(messages: Sequence[Mapping[str, str]]) -> Marks:
    used = "".join(message["content"] for message in messages)
    free = [mark for mark in MARKS if mark not in used]
    if len(free) < 3:
        raise ChatError("the messages have characters that are none (U+FDD0 to U+FDEF)")
    return Marks(*free[:3])


def _contents(text: str, marks: Marks, messages: Sequence[Mapping[str, str]]) -> dict[int, Span]:
    """Where the assistant's contents are in a text, by the number of the message.

    None where the template has dropped parts of some.
    """
    numbers = [
        number
        for number, message in enumerate(messages)
        if message["role"] == "assistant" and message["content"].strip()
    ]
    opened, closed = (
        [i for i, each in enumerate(text) if each == mark] for mark in (marks.open, marks.close)
    )
    if not len(opened) == len(closed) == len(numbers):
        return {}
    return dict(zip(numbers, zip(opened, closed, strict=True), strict=True))
