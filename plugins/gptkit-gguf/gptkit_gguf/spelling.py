"""From a codec to the tokenizer in a GGUF file's metadata."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf import TokenType

from gptkit.codec import Codec, TextCodec
from gptkit.plugin import UsageError
from gptkit_gguf.pre_tokenizers import Spec, name_of
from gptkit_gguf.vocabulary import ENDS
from gptkit_text.codec import TokenizerCodec
from gptkit_text.tokenizer_file import byte_symbols, byte_tokenizer, has_metaspace

PLAIN = "gpt-2"
"""How texts are divided where it makes no difference, because no token is longer than a byte."""


@dataclass(frozen=True)
class Spelling:
    """The tokenizer as llama.cpp wants it: keys of the metadata without `tokenizer.ggml.`."""

    model: str
    """gpt2: a BPE of bytes; llama: SentencePiece; rwkv: the longest token that fits."""
    tokens: list[str]
    types: list[TokenType]
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The keys that differ by model."""
    chat_template: str | None = None


def spell(codec: Codec, vocab_size: int, *, bare: bool = False) -> Spelling:
    """The tokenizer of a codec, with tokens up to a size that are never used.

    Args:
        codec: of the model.
        vocab_size: of the model.
        bare: the file that the model was imported from puts nothing before a text; so does this
            one then, although gptkit's documents begin with a token.

    Raises:
        UsageError: llama.cpp has no such tokenizer.
    """
    if isinstance(codec, TokenizerCodec):
        return _tokenizer(codec, vocab_size, bare=bare)
    if isinstance(codec, TextCodec):
        return _characters(codec, vocab_size)
    raise UsageError("gguf: the model does not write text", hint="export it as ONNX")


def _characters(codec: TextCodec, vocab_size: int) -> Spelling:
    """A token per character.

    llama.cpp's tokenizer of RWKV takes the longest token that fits; with characters that is the
    character itself, and only this kind of tokenizer needs no end token, which would have to be
    one of the characters. What it does not know becomes the token of the key unknown_token_id.
    """
    pieces = [bytes(piece) for piece in codec.token_bytes]
    if len(set(pieces)) < len(pieces) or not all(map(_is_character, pieces)):
        raise UsageError(
            f"gguf: the tokens of the codec {type(codec).__name__} are not single characters, "
            "and it has no tokenizer.json"
        )
    tokens = ["".join(map(_escaped, piece)) for piece in pieces]
    unknown = next((pieces.index(piece) for piece in (b" ", b"\n") if piece in pieces), 0)
    types = [TokenType.NORMAL] * len(tokens)
    _fill(tokens, types, vocab_size)
    return Spelling("rwkv", tokens, types, {"unknown_token_id": unknown})


def _is_character(piece: bytes) -> bool:
    try:
        return len(piece.decode()) == 1
    except UnicodeDecodeError:
        return False


def _escaped(byte: int) -> str:
    """A byte as RWKV's vocabulary spells it."""
    return chr(byte) if 32 <= byte < 127 and byte != ord("\\") else f"\\x{byte:02x}"


def _tokenizer(codec: TokenizerCodec, vocab_size: int, *, bare: bool) -> Spelling:
    spec: Spec = json.loads(codec.tokenizer or byte_tokenizer(codec.end))
    if spec["model"]["type"] != "BPE":
        kind = spec["model"]["type"]
        raise UsageError(f"gguf: tokenizers of the kind {kind} are not supported, BPE is")
    tokens, types = _tokens(spec)
    _fill(tokens, types, vocab_size)
    model, fields = _pieces(spec, codec) if has_metaspace(spec) else _bytes(spec, codec)
    marks = _marks(codec, tokens)
    marks["add_bos_token"] = codec.start_token is not None and not (
        bare and codec.begin is not None
    )
    types[marks["eos_token_id"]] = TokenType.CONTROL
    return Spelling(model, tokens, types, fields | marks, codec.chat_template)


def _tokens(spec: Spec) -> tuple[list[str], list[TokenType]]:
    """All tokens by id, and what they are."""
    model = spec["model"]
    names: dict[int, str] = {number: token for token, number in model["vocab"].items()}
    kinds = dict.fromkeys(names, TokenType.NORMAL)
    if model.get("byte_fallback"):
        kinds |= {i: TokenType.BYTE for i, name in names.items() if _is_byte(name)}
    for added in spec["added_tokens"]:
        names[added["id"]] = added["content"]
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        kinds[added["id"]] = kind
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None:
        kinds[unknown] = TokenType.UNKNOWN
    return [names[i] for i in range(len(names))], [kinds[i] for i in range(len(names))]


def _is_byte(name: str) -> bool:
    return len(name) == 6 and name.startswith("<0x") and name.endswith(">")


def _fill(tokens: list[str], types: list[TokenType], vocab_size: int) -> None:
    """Add tokens for the ids that the tokenizer has not; a model may have more, for its speed."""
    for number in range(len(tokens), vocab_size):
        tokens.append(f"[PAD{number}]")
        types.append(TokenType.UNUSED)


def _bytes(spec: Spec, codec: TokenizerCodec) -> tuple[str, dict[str, Any]]:
    """The keys of a BPE of bytes."""
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in spec["model"]["merges"]]
    name = name_of(spec) if merges else PLAIN
    if name is None:
        raise UsageError("gguf: llama.cpp has no tokenizer that divides texts into the same words")
    if codec.space:
        raise UsageError("gguf: llama.cpp puts no space before a text with this tokenizer")
    return "gpt2", {"pre": name, "merges": merges or [_no_merge(spec["model"]["vocab"])]}


def _no_merge(vocabulary: Mapping[str, int]) -> str:
    """A merge of ASCII that forms no token: llama.cpp wants at least one, and undoes this one."""
    letters = [chr(code) for code in range(33, 127) if chr(code) in vocabulary]
    pairs = ((first, second) for first in letters for second in letters)
    return next(f"{a} {b}" for a, b in pairs if a + b not in vocabulary)


def _pieces(spec: Spec, codec: TokenizerCodec) -> tuple[str, dict[str, Any]]:
    """The keys of SentencePiece's BPE: a piece's score is the rank of its first merge."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(spec["model"]["merges"]):
        ranks.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), rank)
    vocabulary = spec["model"]["vocab"]
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    scores = [-float(ranks.get(name, len(ranks))) for name in names]
    return "llama", {"scores": scores, "add_space_prefix": codec.space is not None}


def _marks(codec: TokenizerCodec, tokens: list[str]) -> dict[str, Any]:
    """The keys of the tokens that begin and end a text."""
    stops = codec.stop_tokens or (_never_written(tokens),)
    end, *others = stops
    named = [token for token in others if tokens[token] not in ENDS]
    begin = codec.start_token
    return {
        "eos_token_id": end,
        "bos_token_id": end if begin is None else begin,
        **{f"{key}_token_id": token for key, token in zip(("eot", "eom"), named, strict=False)},
    }


def _never_written(tokens: list[str]) -> int:
    """A token that no text has: llama.cpp needs an end token, and takes token 11 if none is named.

    Raises:
        UsageError: there is none.
    """
    last = byte_symbols()[255]  # in UTF-8 no character has this byte
    for name in (last, "<0xFF>", next((each for each in tokens if each.startswith("[PAD")), last)):
        if name in tokens:
            return tokens.index(name)
    raise UsageError(
        "gguf: the tokenizer has no end token, and llama.cpp needs one",
        hint='dataset.documents = "mark" or "mask" makes one',
    )
