"""CharCodec: one token per character. Imports no torch."""

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

from pydantic import Field, field_validator

from gptkit.codec import Codec, PromptError

SHOWN_UNKNOWN = 10
SHOWN_KNOWN = 100


class CharCodec(Codec):
    """A character's id is its index in the vocabulary."""

    suffix: ClassVar[str] = ".txt"

    vocabulary: str = Field(min_length=1)
    """All characters that the text has, each once, sorted by code point."""

    @field_validator("vocabulary")
    @classmethod
    def _check_unique(cls, vocabulary: str) -> str:
        if len(set(vocabulary)) < len(vocabulary):
            raise ValueError("should hold each character once")
        return vocabulary

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {character: index for index, character in enumerate(self.vocabulary)}

    def encode(self, prompt: str) -> list[int]:
        """One id per character; a sample from nothing starts after a newline, if there is one.

        Args:
            prompt: text made of the vocabulary's characters.

        Returns:
            The ids; for "" the newline's, or 0 where the vocabulary has no newline.

        Raises:
            PromptError: the text that the model saw had not all of these characters.
        """
        if unknown := sorted(set(prompt) - self._ids.keys()):
            raise PromptError(
                f"prompt: the model never saw {_listing(unknown)}",
                hint=f"use only the characters that it knows: {self._known()}",
            )
        return [self._ids[character] for character in prompt] or [self._ids.get("\n", 0)]

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The text in UTF-8."""
        return "".join(self.vocabulary[token] for token in tokens).encode()

    def legend(self) -> dict[str, list[str]]:
        """The characters by id."""
        return {"text": list(self.vocabulary)}

    def _known(self) -> str:
        rest = len(self.vocabulary) - SHOWN_KNOWN
        return repr(self.vocabulary[:SHOWN_KNOWN]) + (f" and {rest} more" if rest > 0 else "")


def _listing(characters: Sequence[str]) -> str:
    rest = len(characters) - SHOWN_UNKNOWN
    shown = ", ".join(map(repr, characters[:SHOWN_UNKNOWN]))
    return shown + (f" and {rest} more" if rest > 0 else "")
