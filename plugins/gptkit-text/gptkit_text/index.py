"""What index.json holds of an encoded text, and how its files are named."""

import hashlib
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

SplitName = Literal["train", "val"]
SPLITS: tuple[SplitName, SplitName] = ("train", "val")
FILES = ("counts.bin", "sketch-train.bin", "sketch-val.bin")
"""The files beside the shards and the index."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Totals(_Strict):
    """How much text a split has."""

    documents: NonNegativeInt = 0
    bytes: NonNegativeInt = 0
    """Of the text in UTF-8."""
    tokens: NonNegativeInt = 0

    def add(self, *, documents: int = 0, bytes: int = 0, tokens: int = 0) -> Self:
        """The totals with so much more."""
        return type(self)(
            documents=self.documents + documents,
            bytes=self.bytes + bytes,
            tokens=self.tokens + tokens,
        )


class Index(_Strict):
    """A complete description of the files of an encoded text, or of those of its beginning."""

    dtype: str
    """"uint16" or "uint32", that of a token."""
    vocab_size: PositiveInt
    shard: PositiveInt
    """Tokens of a shard; only the last one of a split may have fewer."""
    parts: NonNegativeInt
    """Documents, or pieces of long ones, that were encoded."""
    train: Totals
    val: Totals
    skipped: dict[str, int]
    """How many documents were left out, by their kind."""
    sha256: dict[str, str]
    """The digest of each file."""
    seal: str = ""
    """Digest of the other fields."""

    def totals(self, split: str) -> Totals:
        """Those of the split "train" or "val"."""
        return self.train if split == "train" else self.val

    def file_names(self) -> list[str]:
        """All files that the folder should have, beside index.json."""
        return [
            *(
                shard_name(split, i)
                for split in SPLITS
                for i in range(len(shard_sizes(self.totals(split).tokens, self.shard)))
            ),
            *FILES,
        ]

    def sealed(self) -> bytes:
        """The contents of index.json."""
        plain = self.model_dump_json(exclude={"seal"}).encode()
        seal = hashlib.sha256(plain).hexdigest()
        return self.model_copy(update={"seal": seal}).model_dump_json().encode()

    @classmethod
    def unsealed(cls, contents: bytes) -> Self:
        """The index that `sealed` wrote.

        Raises:
            ValueError: it was changed, or is none.
        """
        index = cls.model_validate_json(contents)
        if index.sealed() != contents:
            raise ValueError("the index is damaged")
        return index


def shard_name(split: str, number: int) -> str:
    """The file of a shard."""
    return f"{split}-{number:05}.bin"


def shard_sizes(tokens: int, shard: int) -> list[int]:
    """How many tokens each shard of a split has."""
    return [min(shard, tokens - first) for first in range(0, tokens, shard)]
