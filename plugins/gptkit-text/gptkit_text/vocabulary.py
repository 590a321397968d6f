"""What the tokens of a `tokenizer.json` stand for."""

from dataclasses import dataclass

from tokenizers import Tokenizer

from gptkit_text.tokenizer_file import (
    ADDITIONS,
    SPACE,
    Spec,
    byte_symbols,
    has_metaspace,
    parts_of,
    read_tokenizer,
)

SPLITS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
"""Pre-tokenizers that drop spaces: their words stand for themselves and the space before."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and its tokens."""

    library: Tokenizer
    pieces: list[bytes]
    """The bytes of every token, by id; b"" for one that is no text."""
    control: frozenset[int]
    """Ids that no text has, whatever it spells; the token of unknown characters is none of them."""


def read_vocabulary(text: str) -> Vocabulary:
    """The vocabulary of a `tokenizer.json`, as `prepare` gives it.

    Raises:
        ValueError: says what is wrong with it.
    """
    file = read_tokenizer(text)
    spec, ids = file.spec, file.ids
    _check_prepared(spec)
    special = {token["id"] for token in spec["added_tokens"] if token["special"]}
    added = {token["content"] for token in spec["added_tokens"]}
    piece_bytes = _Pieces(spec)
    pieces = [b""] * len(ids)
    for piece, token in ids.items():
        if token not in special:
            pieces[token] = piece.encode() if piece in added else piece_bytes(piece)
    unknown = {ids.get(spec["model"].get("unk_token")), spec["model"].get("unk_id")}
    return Vocabulary(file.library, pieces, frozenset(special - unknown))


def _check_prepared(spec: Spec) -> None:
    """Refuse what gives other tokens than a text's own, or not always the same."""
    found = [name for name in ADDITIONS if spec[name] is not None]
    found += ["dropout"] if spec["model"].get("dropout") else []
    if found:
        raise ValueError(f"the tokenizer should have no {found[0]}")


class _Pieces:
    """The bytes of a piece, as the vocabulary spells it."""

    def __init__(self, spec: Spec) -> None:
        model, kinds = spec["model"], {part["type"] for part in parts_of(spec)}
        symbols = byte_symbols() if "ByteLevel" in kinds else []
        self.bytes = {symbol: byte for byte, symbol in enumerate(symbols)}
        self.space = SPACE if has_metaspace(spec) else None
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
        return before.encode() + self._body(piece) + after.encode()

    def _body(self, piece: str) -> bytes:
        try:
            return bytes(map(self.bytes.__getitem__, piece))
        except KeyError:
            return (piece.replace(self.space, " ") if self.space else piece).encode()


def _byte(piece: str) -> bytes | None:
    """The byte that "<0x0A>" names; None for another piece."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes.fromhex(piece[3:5])
        except ValueError:
            return None
    return None
