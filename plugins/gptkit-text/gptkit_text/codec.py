"""TokenizerCodec: subword tokens, or one token per byte. Imports no torch."""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Self

from pydantic import Field, NonNegativeInt, model_validator

from gptkit.codec import PromptError, TextCodec
from gptkit_text.tokenizer_file import Space, begin_with, byte_tokenizer, is_fault, with_space
from gptkit_text.vocabulary import Vocabulary, read_vocabulary
from gptkit_text.word_pattern import word_pattern

SHOWN = 100  # characters of a text in an error


class TokenizerCodec(TextCodec):
    """A tokenizer of the `tokenizers` library; the end token begins every document."""

    contract = 1

    tokenizer: str = Field(repr=False)
    """The text of a `tokenizer.json`, as `tokenizer_file.prepare` gives it; "" for single bytes."""
    end: NonNegativeInt | None = None
    """The id that begins a document and ends a sample; None if the texts are joined."""
    begin: NonNegativeInt | None = Field(default=None, repr=False)
    """The id before every prompt, such as Llama's; None for that of the end token."""
    stops: tuple[NonNegativeInt, ...] = Field(default=(), repr=False)
    """The ids that end a sample where they are several; () for that of the end token."""
    space: Space | None = Field(default=None, repr=False)
    """Put a space before a prompt, "always" or where it is "missing", as SentencePiece does."""
    chat_template: str | None = Field(default=None, repr=False)
    """The template in Jinja that turns a chat into a text; None if there is none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        special = self._vocabulary.control if self.tokenizer else {256}
        for name, token in (("end", self.end), ("begin", self.begin)):
            if token is not None and token not in special:
                raise ValueError(f"{name}, {token}, should be a special token, which is no text")
        if wrong := [token for token in self.stops if token >= self.vocab_size]:
            raise ValueError(f"stops should hold ids below {self.vocab_size}, got {wrong[0]}")
        return self

    @property
    def vocab_size(self) -> int:
        """How many token ids there are."""
        return len(self.token_bytes)

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """The end token, if there is one, or all ids that end a sample."""
        return self.stops or (() if self.end is None else (self.end,))

    @property
    def start_token(self) -> int | None:
        """The special token that begins every prompt, if there is one."""
        return self.end if self.begin is None else self.begin

    @cached_property
    def token_bytes(self) -> Sequence[bytes]:
        """The bytes of every token, by id; b"" for the end token and other special ones."""
        if self.tokenizer:
            pieces = self._vocabulary.pieces
        else:
            pieces = [bytes([byte]) for byte in range(256)] + [b""] * (self.end is not None)
        return [b"" if token == self.end else piece for token, piece in enumerate(pieces)]

    def encode(self, prompt: str) -> list[int]:
        """The token that a document begins with, then the tokens of the prompt.

        Args:
            prompt: any text. What spells a special token is text.

        Returns:
            The ids; for "" without such a token those of a line feed.

        Raises:
            PromptError: the prompt has half a character, which no text has, or the tokenizer
                cannot divide it.
        """
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"prompt: half a character, U+{ord(prompt[error.start]):04X}, at {error.start}",
                hint="give the prompt in UTF-8",
            ) from None
        if self.start_token is None:
            return self.divide(self.spaced(prompt) or "\n") or [0]
        return [self.start_token, *self.divide(self.spaced(prompt))]

    def divide(self, text: str) -> list[int]:
        """The tokens of a text, without the end token.

        Raises:
            PromptError: the tokenizer cannot divide it.
        """
        if not self.tokenizer:
            return list(text.encode())
        try:
            (found,) = self._vocabulary.library.encode_batch_fast([text], add_special_tokens=False)
        except BaseException as error:
            if not is_fault(error):
                raise
            raise PromptError(
                f"the tokenizer cannot divide {text[:SHOWN]!r}: {error}",
                hint="leave out what it does not know",
            ) from error
        ids: list[int] = found.ids
        return ids if self._vocabulary.control.isdisjoint(ids) else self._divide_spelt(text)

    def tokenizer_json(self) -> str:
        """The text of a `tokenizer.json` that gives what `encode` gives, the first token, too.

        A program that leaves special tokens out gets what `divide` gives, after a space if the
        codec puts one before a prompt.
        """
        text = self.tokenizer or byte_tokenizer(self.end)
        text = with_space(text, self.space) if self.space else text
        return text if self.start_token is None else begin_with(text, self.start_token)

    @property
    def word_pattern(self) -> str | None:
        """GPT-2's, if the tokenizer is like GPT-2's."""
        return word_pattern(self.tokenizer)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return read_vocabulary(self.tokenizer)

    def spaced(self, prompt: str) -> str:
        """A text with the space that the codec puts before it, if any."""
        needed = self.space == "always" or (self.space == "missing" and prompt[:1] != " ")
        return f" {prompt}" if needed and prompt else prompt

    def _divide_spelt(self, text: str) -> list[int]:
        """The tokens of a text that spells a special token: it is cut inside of that one."""
        library, control = self._vocabulary.library, self._vocabulary.control
        found = library.encode(text, add_special_tokens=False)
        spans = [
            span for token, span in zip(found.ids, found.offsets, strict=True) if token in control
        ]
        cuts = [start + 1 for start, stop in spans if stop - start > 1]
        if not cuts:  # a single character: it is left out
            return [token for token in found.ids if token not in control]
        parts = [text[start:stop] for start, stop in pairwise([0, *cuts, len(text)])]
        return [token for part in parts for token in self.divide(part)]
