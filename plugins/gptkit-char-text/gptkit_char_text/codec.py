"""CharCodec: one token per character. Imports no torch."""

import unicodedata
from collections.abc import Sequence
from functools import cached_property

from pydantic import Field, field_validator

from gptkit.codec import PromptError, TextCodec

SHOWN_UNKNOWN = 10  # characters in an error
SHOWN_KNOWN = 100


class CharCodec(TextCodec):
    """A character's id is its index in the vocabulary."""

    contract = 1

    vocabulary: str = Field(min_length=1)
    """The different characters of the text, sorted by code point."""

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
        """One id per character; an empty prompt becomes a newline, if the vocabulary has one.

        Args:
            prompt: text made of the vocabulary's characters. Letters with marks may also be
                written in Unicode's other form, as one or several characters.

        Returns:
            The ids; for "" that of the newline, or 0 if the vocabulary has none.

        Raises:
            PromptError: the prompt has characters that are not in the vocabulary.
        """
        for form in ("NFC", "NFD"):  # "é" may be one character or two; take those it knows
            if not prompt.isascii() and self._unknown(prompt):
                same = unicodedata.normalize(form, prompt)
                prompt = prompt if self._unknown(same) else same
        if unknown := self._unknown(prompt):
            raise PromptError(
                f"prompt: the model never saw {_listing(unknown)}",
                hint=f"use only the characters that it knows: {self._known()}",
            )
        return [self._ids[character] for character in prompt] or [self._ids.get("\n", 0)]

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The characters in UTF-8, by id."""
        return [character.encode() for character in self.vocabulary]

    def _unknown(self, prompt: str) -> list[str]:
        return sorted(set(prompt) - self._ids.keys())

    def _known(self) -> str:
        shown = self.vocabulary[:SHOWN_KNOWN]
        return repr(shown) + _more(len(self.vocabulary) - SHOWN_KNOWN)


def _listing(characters: Sequence[str]) -> str:
    shown = ", ".join(map(_named, characters[:SHOWN_UNKNOWN]))
    return shown + _more(len(characters) - SHOWN_UNKNOWN)


def _named(character: str) -> str:
    """A character in quotes; beyond ASCII with its code point, also where it cannot be seen."""
    if character.isascii():
        return repr(character)
    point = f"U+{ord(character):04X}"
    mark = unicodedata.category(character)[0] in "CMZ"  # alone, it cannot be seen
    name = unicodedata.name(character, "")
    return f"{point} {name}".rstrip() if mark else f"{character!r} ({point})"


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
