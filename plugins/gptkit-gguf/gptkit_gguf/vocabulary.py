"""From the tokenizer in a GGUF file's metadata to a tokenizer.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import TokenType

from gptkit.plugin import RunError, UsageError
from gptkit_gguf.header import Header
from gptkit_gguf.pre_tokenizers import KINDS, Spec

SPACE = "▁"  # U+2581, what SentencePiece has in place of a space
LONGEST = 512  # characters of a token that merges form
SPECIAL = (TokenType.CONTROL, TokenType.UNUSED, TokenType.UNKNOWN)
ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>")
"""Tokens that llama.cpp stops at wherever a vocabulary has them."""
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}


@dataclass(frozen=True)
class TokenizerData:
    """A tokenizer as a GGUF file has it.

    Attributes:
        text: Of a tokenizer.json; like SentencePiece it may put a space before a text.
        begin: The id that is put before every text, if there is one.
        end: The id that ends a text, if there is one.
        stops: All ids that end what a model writes.
        chat_template: The template of a chat in Jinja, if there is one.
    """

    text: str
    begin: int | None
    end: int | None
    stops: tuple[int, ...]
    chat_template: str | None


def read_vocabulary(header: Header) -> TokenizerData:
    """The tokenizer of a GGUF file.

    Raises:
        UsageError: it is of a kind that is not supported.
        RunError: the file contradicts itself.
    """
    return _Reader(header).read()


class _Reader:
    """Reads the keys of the tokenizer."""

    def __init__(self, header: Header) -> None:
        self.path = header.path
        self.fields = header.fields
        self.model = self._get("model", str, "")
        self.tokens: list[str] = self._list("tokens", str)
        if not self.tokens or len(set(self.tokens)) < len(self.tokens):
            raise RunError(f"{self.path}: damaged: its vocabulary is empty, or has a token twice")
        types = self._list("token_type", int) or [int(TokenType.NORMAL)] * len(self.tokens)
        if len(types) != len(self.tokens):
            raise RunError(
                f"{self.path}: damaged: {len(self.tokens):,} tokens have {len(types):,} types"
            )
        self.types = types

    def read(self) -> TokenizerData:
        """The tokenizer."""
        if self.model == "gpt2":
            spec = self._bytes()
            begins, ends = self._get("pre", str, "default").startswith("llama"), 11
        elif self.model == "llama":
            spec = self._pieces()
            begins, ends = True, 2
        else:
            raise UsageError(
                f"{self.path}: the tokenizer {self.model!r} is not supported",
                hint="supported: gpt2 (byte-level BPE) and llama (SentencePiece)",
            )
        begins = self._get("add_bos_token", bool, begins)
        end = self._id("eos_token_id", ends)
        begin = self._id("bos_token_id", 11 if self.model == "gpt2" else 1) if begins else None
        spec["added_tokens"] = self._added({begin, end})
        return TokenizerData(
            text=json.dumps(spec, ensure_ascii=False, separators=(",", ":")),
            begin=begin,
            end=end,
            stops=self._stops(end),
            chat_template=self.fields.get("tokenizer.chat_template") or None,
        )

    def _bytes(self) -> Spec:
        """A BPE of bytes, such as GPT-2's."""
        name = self._get("pre", str, "default")
        if name not in KINDS:
            raise UsageError(
                f"{self.path}: tokenizer.ggml.pre is {name!r}: not supported",
                hint=f"supported: {', '.join(KINDS)}",
            )
        merges = [_pair(merge) for merge in self._list("merges", str)]
        vocabulary = {token: number for number, token in enumerate(self.tokens)}
        usable = [pair for pair in merges if "".join(pair) in vocabulary]
        model = {"ignore_merges": KINDS[name].whole, "vocab": vocabulary, "merges": usable}
        return _spec(model, pre_tokenizer=KINDS[name].spec, decoder=BYTE_LEVEL)

    def _pieces(self) -> Spec:
        """SentencePiece's BPE: the two neighbours that form the best piece are joined."""
        scores = self._list("scores", float)
        if len(scores) != len(self.tokens):
            raise RunError(f"{self.path}: damaged: the vocabulary has {len(scores):,} scores")
        vocabulary = {token: number for number, token in enumerate(self.tokens)}
        unknown = self._id("unknown_token_id", 0)
        model = {
            "unk_token": self.tokens[unknown or 0],
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": _merges(self.tokens, scores, vocabulary),
        }
        spaces: Spec = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        if self._get("add_space_prefix", bool, True):
            parts = [{"type": "Prepend", "prepend": SPACE}, spaces]
            spaces = {"type": "Sequence", "normalizers": parts}
        back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        decoder = {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}],
        }
        return _spec(model, normalizer=spaces, decoder=decoder)

    def _added(self, special: set[int | None]) -> list[Spec]:
        """The tokens that are no text, and those that always stay whole."""
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return [
            {"id": number, "content": token, **flags, "special": number in special or own}
            for number, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if (own := kind in SPECIAL) or number in special or kind == TokenType.USER_DEFINED
        ]

    def _stops(self, end: int | None) -> tuple[int, ...]:
        """The end token first, then the others that llama.cpp stops at."""
        named = [self._id(f"{name}_token_id", None) for name in ("eot", "eom")]
        common = [self.tokens.index(token) for token in ENDS if token in set(self.tokens)]
        found = [number for number in (end, *named, *common) if number is not None]
        return tuple(dict.fromkeys(found))

    def _id(self, key: str, default: int | None) -> int | None:
        """A token's id; None if there is none."""
        number = self.fields.get(f"tokenizer.ggml.{key}", default)
        if number is None:
            return None
        if not isinstance(number, int) or not 0 <= number < len(self.tokens):
            if key in ("eos_token_id", "bos_token_id", "unknown_token_id"):
                raise RunError(f"{self.path}: damaged: tokenizer.ggml.{key} is {number!r}")
            return None
        return number

    def _get(self, key: str, kind: type, default: Any) -> Any:
        value = self.fields.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, kind):
            raise RunError(f"{self.path}: damaged: tokenizer.ggml.{key} is no {kind.__name__}")
        return value

    def _list(self, key: str, kind: type) -> list[Any]:
        values: list[Any] = self._get(key, list, [])
        if not all(isinstance(value, kind) for value in values):
            raise RunError(f"{self.path}: damaged: tokenizer.ggml.{key} has other values")
        return values


def _spec(model: Mapping[str, Any], **parts: Spec) -> Spec:
    """The contents of a tokenizer.json."""
    empty = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    return {
        "version": "1.0",
        **dict.fromkeys(empty),
        "added_tokens": [],
        **parts,
        "model": {"type": "BPE", **model},
    }


def _pair(merge: str) -> tuple[str, str]:
    """The two halves of "Ġ t"; a half may begin with a space."""
    first, _, second = merge[1:].partition(" ")
    return merge[:1] + first, second


def _merges(
    tokens: Sequence[str], scores: Sequence[float], vocabulary: Mapping[str, int]
) -> list[tuple[str, str]]:
    """All pairs of pieces that form a piece, best piece first."""
    order = sorted(range(len(tokens)), key=lambda number: -scores[number])
    found = []
    for number in order:
        token = tokens[number]
        if len(token) > LONGEST:  # which no merge forms: its halves would be as long
            continue
        halves = ((token[:i], token[i:]) for i in range(1, len(token)))
        pairs = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
        found += sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return found
