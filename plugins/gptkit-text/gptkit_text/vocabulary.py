"""What the tokens of a `tokenizer.json` stand for, and how such a file is made ready for a codec.

Format: Hugging Face tokenizers' `tokenizer.json`, which the library itself reads and checks.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

SPACE = "▁"  # U+2581, what SentencePiece has in place of a space
END = "<|endoftext|>"
"""The end token where a tokenizer has none."""
ENDS = (END, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")
"""Usual names of an end token."""
SPLITS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
"""Pre-tokenizers that drop spaces: their words stand for themselves and the space before."""

BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}
"""A pre-tokenizer or decoder of bytes that leaves the text in one piece."""

Spec = dict[str, Any]
"""The contents of a `tokenizer.json`."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and its tokens."""

    library: Tokenizer
    pieces: list[bytes]
    """The bytes of every token, by id; b"" for one that is no text."""
    control: frozenset[int]
    """Ids that no text has, whatever it spells; the token of unknown characters is none of them."""


def read_vocabulary(text: str) -> Vocabulary:
    """The vocabulary of a `tokenizer.json`.

    Raises:
        ValueError: says what is wrong with it.
    """
    library = _load(text)
    spec: Spec = json.loads(text)
    ids = library.get_vocab(with_added_tokens=True)
    _check_ids(ids, spec)
    special = {token["id"] for token in spec["added_tokens"] if token["special"]}
    added = {token["content"] for token in spec["added_tokens"]}
    piece_bytes = _Pieces(spec)
    pieces = [b""] * len(ids)
    for piece, token in ids.items():
        if token not in special:
            pieces[token] = piece.encode() if piece in added else piece_bytes(piece)
    unknown = {ids.get(spec["model"].get("unk_token")), spec["model"].get("unk_id")}
    return Vocabulary(library, pieces, frozenset(special - unknown))


def prepare(text: str, *, end: str | None = None) -> tuple[str, int]:
    """Make a `tokenizer.json` ready for a codec: it adds nothing to a text and cuts nothing off.

    Args:
        text: of the file.
        end: its end token; None for one with a usual name, or else a new one.

    Returns:
        The new text, which gives back texts as they are, and the id of the end token.

    Raises:
        ValueError: says what is wrong with the file.
    """
    ids: dict[str, int] = _load(text).get_vocab(with_added_tokens=True)
    spec: Spec = json.loads(text)
    _check_ids(ids, spec)
    spec |= {"truncation": None, "padding": None, "post_processor": None}
    spec["model"]["dropout"] = None
    spec["normalizer"] = _without_prefix(spec["normalizer"])
    spec["pre_tokenizer"] = _without_prefix(spec["pre_tokenizer"])
    spec["decoder"] = _decoder(spec)
    token = _mark_end(spec, ids, end)
    return _written(spec), token


def byte_tokenizer(end: int | None) -> str:
    """The text of a `tokenizer.json` with a token per byte, and an end token."""
    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    spec: Spec = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    spec |= {
        "version": "1.0",
        "added_tokens": [] if end is None else [special_token(END, end)],
        "pre_tokenizer": BYTE_LEVEL,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    return _written(spec)


def begin_with(text: str, token: int) -> str:
    """The `tokenizer.json` that puts a special token before every text."""
    spec: Spec = json.loads(text)
    (name,) = (added["content"] for added in spec["added_tokens"] if added["id"] == token)
    special = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, special, second],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]}},
    }
    return _written(spec)


def byte_symbols() -> list[str]:
    """A visible character for each byte, as byte-level BPE has them (Radford et al. 2019)."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [code for code in range(256) if code not in visible]
    return [chr(byte if byte in visible else 256 + hidden.index(byte)) for byte in range(256)]


class _Pieces:
    """The bytes of a piece, as the vocabulary spells it."""

    def __init__(self, spec: Spec) -> None:
        model, kinds = spec["model"], {part["type"] for part in _all_parts(spec)}
        self.bytes = {s: i for i, s in enumerate(byte_symbols())} if "ByteLevel" in kinds else None
        self.space = SPACE if _has_metaspace(spec) else None
        self.fallback = bool(model.get("byte_fallback"))
        self.prefix = model.get("continuing_subword_prefix")
        self.suffix = model.get("end_of_word_suffix")
        self.words = model["type"] in ("WordPiece", "WordLevel") and bool(kinds & SPLITS)

    def __call__(self, piece: str) -> bytes:
        if self.fallback and (byte := _byte(piece)) is not None:
            return byte
        before, after = "", ""
        if self.prefix and piece.startswith(self.prefix):
            piece = piece.removeprefix(self.prefix)
        elif self.words:
            before = " "
        if self.suffix and piece.endswith(self.suffix):
            piece, after = piece.removesuffix(self.suffix), " "
        if self.bytes and all(symbol in self.bytes for symbol in piece):
            body = bytes(self.bytes[symbol] for symbol in piece)
        else:
            body = (piece.replace(self.space, " ") if self.space else piece).encode()
        return before.encode() + body + after.encode()


def _byte(piece: str) -> bytes | None:
    """The byte that "<0x0A>" names; None for another piece."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes.fromhex(piece[3:5])
        except ValueError:
            return None
    return None


def _written(spec: Spec) -> str:
    return json.dumps(spec, ensure_ascii=False, separators=(",", ":"))


def _load(text: str) -> Tokenizer:
    try:
        library = Tokenizer.from_str(text)
    except BaseException as error:  # a panic of the library is no Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(f"not a tokenizer.json: {error}") from None
        raise
    library.encode_special_tokens = True  # what spells a special token is text
    return library


def _check_ids(ids: dict[str, int], spec: Spec) -> None:
    if not ids:
        raise ValueError("the vocabulary is empty")
    for token in spec["added_tokens"]:
        if ids.get(token["content"]) != token["id"]:
            raise ValueError(f"the token {token['content']!r} has two ids")
    if len(spec["model"]["vocab"]) > len(ids):
        raise ValueError("the vocabulary has a token twice")
    highest = max(ids, key=ids.__getitem__)
    if ids[highest] >= len(ids):
        raise ValueError(
            f"the token {highest!r} has id {ids[highest]:,}, but there are only {len(ids):,} tokens"
        )
    seen: dict[int, str] = {}
    for token, number in ids.items():
        if (other := seen.setdefault(number, token)) != token:
            first, second = sorted((other, token))
            raise ValueError(f"the tokens {first!r} and {second!r} have the same id, {number}")


def _parts(component: Spec | None) -> Iterator[Spec]:
    """A normalizer, pre-tokenizer or decoder, and what it consists of if it is a sequence."""
    if component is None:
        return
    yield component
    for name in ("normalizers", "pretokenizers", "decoders"):
        for part in component.get(name, []):
            yield from _parts(part)


def _all_parts(spec: Spec) -> Iterator[Spec]:
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        yield from _parts(spec[name])


def _has_metaspace(spec: Spec) -> bool:
    return any(SPACE in (p.get("replacement"), p.get("content")) for p in _all_parts(spec))


def _without_prefix(component: Spec | None) -> Spec | None:
    """The component, putting no space before a text."""
    if component is None or component["type"] == "Prepend":
        return None
    component = dict(component)
    for name in ("normalizers", "pretokenizers"):
        if name in component:
            component[name] = [p for part in component[name] if (p := _without_prefix(part))]
    if component["type"] == "Metaspace":
        component["prepend_scheme"] = "never"
    if "add_prefix_space" in component:
        component["add_prefix_space"] = False
    return component


def _decoder(spec: Spec) -> Spec | None:
    """A decoder that drops no space: what comes out is the tokens' bytes, joined."""
    kinds = {part["type"] for part in _all_parts(spec)}
    if "ByteLevel" in kinds:
        return BYTE_LEVEL
    if _has_metaspace(spec):
        spaces = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        return {
            "type": "Sequence",
            "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}],
        }
    decoder: Spec | None = spec["decoder"]
    return decoder


def _mark_end(spec: Spec, ids: dict[str, int], end: str | None) -> int:
    """Make a token the end token, which is a special one, and return its id."""
    if end is not None and end not in ids:
        raise ValueError(f"tokenizer_config.json names the end token {end!r}, which is no token")
    end = end or next((name for name in ENDS if name in ids), END)
    token, model = ids.get(end, len(ids)), spec["model"]
    if model["type"] == "BPE" and model.get("unk_token") == end:
        model["unk_token"] = None  # of a byte-level one: nothing is unknown
    if model.get("unk_token") == end or model.get("unk_id") == token:
        raise ValueError(f"the end token, {end!r}, stands for unknown characters, too")
    others = [added for added in spec["added_tokens"] if added["content"] != end]
    added = [*others, special_token(end, token)]
    spec["added_tokens"] = sorted(added, key=lambda entry: int(entry["id"]))
    return token


def special_token(content: str, token: int) -> Spec:
    """An entry of `added_tokens`."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": content, **flags, "special": True}
