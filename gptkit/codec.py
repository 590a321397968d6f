"""Codec: prompts to token ids, token ids to text, images or other files. Imports no torch.

A codec is plain data. A checkpoint and an exported `.onnx` carry its JSON and the name of its entry
point in the group `gptkit.codecs`, so sampling never opens the training data.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, field_validator

from gptkit.errors import DefinitionError, PromptError, closest
from gptkit.files import open_file

__all__ = ["CONTRACT", "Codec", "ImageCodec", "PromptError", "TextCodec", "open_file"]

CONTRACT = 1
"""The version of the plugin contract that this gptkit has."""


def declared_contract(plugin: type) -> object:
    """The contract that a plugin's class, or a base of it outside gptkit, declares; else None."""
    for base in plugin.__mro__:
        foreign = base is plugin or base.__module__.partition(".")[0] != "gptkit"
        if foreign and "contract" in vars(base):
            return vars(base)["contract"]
    return None


def contract_fault(plugin: type) -> str | None:
    """What is wrong with the contract that a plugin's class declares; None if nothing is."""
    contract = declared_contract(plugin)
    if contract is None:
        return "declares no contract"
    if contract != CONTRACT:
        return f"is written for contract {contract!r}; this gptkit has contract {CONTRACT}"
    return None


def check_untyped(plugin: type[BaseModel]) -> None:
    """Refuse a class in which the contract has a type and therefore is an option.

    Raises:
        DefinitionError: says how to write it.
    """
    if "contract" in plugin.model_fields:
        written = f"contract = {CONTRACT}"
        raise DefinitionError(f"{plugin.__name__}.contract: write it without a type: {written}")


def _allow_attributes(kind: type[BaseModel]) -> None:
    """Let classes that extend a class give its properties a value; pydantic asks for a type."""
    kind.__class_vars__ |= {n for n, value in vars(kind).items() if isinstance(value, property)}


class Codec(BaseModel, ABC):
    """Converts one data set's prompts and samples; every field must be JSON-able.

    Extend `TextCodec` for text and `ImageCodec` for images; this class is for other files. What is
    a property here may be a plain attribute of a codec's class, too: `stop_tokens = (12,)`.

    Attributes:
        contract: The version of the plugin contract that the codec is written for: `contract = 1`.
        suffix: File name ending of what `decode` returns, e.g. ".txt" or ".png".
        temperature: The default sampling temperature.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    contract: ClassVar[int]
    suffix: ClassVar[str]
    temperature: ClassVar[float] = 1.0

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a contract that has a type, which makes it a field."""
        check_untyped(cls)

    def __eq__(self, other: object) -> bool:
        """Whether class and fields are equal; a cached property, such as an array, is not one."""
        if not isinstance(other, Codec):
            return False
        return type(self) is type(other) and self.model_dump() == other.model_dump()

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Ids that end a sample; they are not part of it."""
        return ()

    @property
    def length(self) -> int | None:
        """Tokens of a whole sample with its start; None if samples have no fixed length."""
        return None

    @property
    def starts(self) -> list[list[int]]:
        """The starts of samples without a prompt: one per class, or a single one.

        All have the same number of token ids, at least one.
        """
        return [self.encode("")]

    def start(self, prompt: str, *, keep: float = 1.0, label: str | None = None) -> list[int]:
        """Token ids that start a sample, for the options of `gptkit sample`.

        Args:
            prompt: what to continue; "" for a sample without a prompt.
            keep: the fraction of the prompt to keep, from its beginning, 0 to 1.
            label: the class to draw from, if the model has classes.

        Raises:
            PromptError: the prompt, `keep` or `label` does not fit this model.
        """
        if label is not None:
            raise PromptError("this model knows no classes", hint="leave --class out")
        _check_keep(keep)
        tokens = self.encode(prompt)
        return tokens[: max(1, round(keep * len(tokens)))]

    @abstractmethod
    def encode(self, prompt: str) -> list[int]:
        """Token ids that start a sample.

        Args:
            prompt: what to continue; "" for a sample without a prompt.

        Returns:
            At least one token id. A start that is no text comes before every prompt.

        Raises:
            PromptError: the prompt contains something that the model never saw.
        """

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> bytes:
        """The file contents that `tokens` stand for, in the format that `suffix` names."""


_allow_attributes(Codec)


class TextCodec(Codec):
    """A codec of text in UTF-8: every token stands for some bytes of it.

    A character may consist of several tokens. `gptkit sample` shows it when it is complete.
    """

    suffix: ClassVar[str] = ".txt"
    temperature: ClassVar[float] = 0.8

    @property
    @abstractmethod
    def token_bytes(self) -> Sequence[bytes]:
        """The bytes of every token, by id; b"" for one that is no text, such as a start token."""

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The bytes of the tokens, joined."""
        known = self.token_bytes
        return b"".join([known[token] for token in tokens])

    def tokenizer_json(self) -> str | None:
        """The text of a Hugging Face `tokenizer.json` that divides texts as `encode` does.

        Exported bundles carry it for other programs. Characters as tokens need none.
        """
        return None

    @property
    def word_pattern(self) -> str | None:
        """A regular expression for programs without the codec, such as the web page of an export.

        Its matches, in JavaScript with the flag u, are the words of a text. The bytes of a word are
        tokens at first; then the two neighbours that form the token with the lowest id become that
        one, as often as there are any. None if `encode` divides texts in another way.
        """
        return None


_allow_attributes(TextCodec)


class ImageCodec(Codec):
    """A codec of images: the tokens of a start, then the pixels row by row.

    A pixel is one token, the index of its colour in `colors`; without `colors` it is three tokens,
    red, green and blue, with ids 0 to 255. `encode` gives the start, then the pixels of an image.

    Attributes:
        classes: The classes, each with its own start; empty for one start for all images.
    """

    suffix: ClassVar[str] = ".png"

    classes: tuple[str, ...] = ()

    @field_validator("classes")
    @classmethod
    def _check_different(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < len(classes):
            raise ValueError("classes should have different names")
        return classes

    @property
    @abstractmethod
    def width(self) -> int:
        """Pixels in a row."""

    @property
    @abstractmethod
    def height(self) -> int:
        """Rows of pixels."""

    @property
    def colors(self) -> Sequence[tuple[int, int, int]]:
        """Red, green and blue, 0 to 255, by id; empty if they are tokens of their own."""
        return ()

    @property
    def lossless(self) -> bool:
        """Whether every token is one dimension of the image, so that no information is lost."""
        return not self.colors

    @property
    def starts(self) -> list[list[int]]:
        """The start of every class, or the only one: by default the ids that follow the colours."""
        first = len(self.colors) or 256
        return [[first + i] for i in range(max(1, len(self.classes)))]

    @property
    def length(self) -> int:
        """Tokens of a whole image with its start."""
        return len(self.starts[0]) + self.width * self.height * (1 if self.colors else 3)

    def start(self, prompt: str, *, keep: float = 1.0, label: str | None = None) -> list[int]:
        """The start of a class, and the upper part of the prompt's pixels.

        Args:
            prompt: what `encode` reads; "" for none.
            keep: the fraction of the pixels to keep, from the top, 0 to 1; 0.5 is the upper half.
            label: the class to draw from; None for the first.

        Raises:
            PromptError: the prompt or the class does not exist, or `keep` is out of range.
        """
        start = self.starts[0 if label is None else self._class(label)]
        _check_keep(keep)
        pixels = self.encode(prompt)[len(start) :]
        return [*start, *pixels[: round(keep * len(pixels))]]

    @abstractmethod
    def sheet(self, samples: Sequence[Sequence[int]], *, prompt: str = "", kept: int = 0) -> bytes:
        """Several images in one file of the format that `suffix` names.

        Args:
            samples: token ids of each image, those of the prompt first.
            prompt: the prompt, to be shown, too.
            kept: how many tokens of every sample come from the prompt.
        """

    def preview(self, contents: bytes, *, width: int) -> str | None:
        """The result of `decode` or `sheet` as text for a terminal of `width` columns.

        None if it cannot be shown.
        """
        return None

    def _class(self, name: str) -> int:
        if not self.classes:
            raise PromptError("this model knows no classes", hint="leave --class out")
        if name not in self.classes:
            near = closest(name, self.classes)
            advice = f'; did you mean "{near}"?' if near else ""
            known = ", ".join(self.classes)
            raise PromptError(f'no class named "{name}"', hint=f"known: {known}{advice}")
        return self.classes.index(name)


_allow_attributes(ImageCodec)


def _check_keep(keep: float) -> None:
    if not 0 <= keep <= 1:  # also true for NaN
        raise PromptError(f"keep should be between 0 and 1, got {keep}", hint="0.5 keeps a half")
