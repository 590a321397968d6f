"""Files `tokenizer.json`, a format of Hugging Face tokenizers: reading, making, changing them."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Tokenizer

SPACE = "▁"  # U+2581, what SentencePiece has in place of a space
END = "<|endoftext|>"
"""The end token where a tokenizer has none."""
ENDS = (END, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")
"""Usual names of an end token."""
ADDITIONS = ("truncation", "padding", "post_processor")
"""What adds tokens to a text, or cuts some off."""
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}
"""A pre-tokenizer or decoder of bytes that leaves the text in one piece."""

Spec = dict[str, Any]
"""The contents of a `tokenizer.json`."""
Space = Literal["always", "missing"]
"""When a space is put before a text."""


@dataclass(frozen=True)
class TokenizerFile:
    """A `tokenizer.json`, which the library has read and whose ids are right."""

    library: Tokenizer
    spec: Spec
    """As the library writes it, so that nothing is left out."""
    ids: dict[str, int]
    """The id of every token, special ones included: all from 0 on."""


def read_tokenizer(text: str) -> TokenizerFile:
    """Read the text of a `tokenizer.json`.

    Raises:
        ValueError: says what is wrong with it.
    """
    library = _load(text)
    ids = library.get_vocab(with_added_tokens=True)
    _check_ids(ids, json.loads(text))
    return TokenizerFile(library, json.loads(library.to_str()), ids)


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
    file = read_tokenizer(text)
    spec = without_additions(file.spec)
    token = _mark_end(spec, file.ids, end)
    return written(spec), token


def without_additions(spec: Spec) -> Spec:
    """The tokenizer, changed so that it adds nothing to a text and gives it back as it is."""
    spec = spec | dict.fromkeys(ADDITIONS)
    spec["model"]["dropout"] = None
    spec["normalizer"] = _without_prefix(spec["normalizer"])
    spec["pre_tokenizer"] = _without_prefix(spec["pre_tokenizer"])
    spec["decoder"] = _decoder(spec)
    return spec


def is_fault(error: BaseException) -> bool:
    """Whether an error is the library's; its panics are no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def begin_with(text: str, token: int) -> str:
    """The `tokenizer.json` that puts a special token before every text."""
    spec: Spec = json.loads(text)
    (name,) = (added["content"] for added in spec["added_tokens"] if added["id"] == token)
    special = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": letter, "type_id": 0}} for letter in "AB")
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, special, second],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]}},
    }
    return written(spec)


def with_special(text: str, names: Iterable[str]) -> str:
    """The `tokenizer.json` in which these are special tokens; new ones get the ids that follow."""
    file = read_tokenizer(text)
    added = {token["content"]: token for token in file.spec["added_tokens"]}
    for name in names:
        token = file.ids.setdefault(name, len(file.ids))
        if name not in added or not added[name]["special"]:
            added[name] = _special_token(name, token)
    file.spec["added_tokens"] = sorted(added.values(), key=lambda entry: int(entry["id"]))
    return written(file.spec)


def space_before(text: str) -> Space | None:
    """When a `tokenizer.json`, before `prepare`, puts a space before a text; None for never."""
    spec = read_tokenizer(text).spec
    parts = [part for name in ("normalizer", "pre_tokenizer") for part in _parts(spec[name])]
    if any(part["type"] == "Prepend" for part in parts):
        return "always"
    prefixed = [part.get("prepend_scheme", "never") != "never" for part in parts]
    prefixed += [part["type"] == "ByteLevel" and part["add_prefix_space"] for part in parts]
    return "missing" if any(prefixed) else None


def with_space(text: str, when: Space) -> str:
    """The `tokenizer.json` that puts a space before every text, and drops it when it decodes."""
    spec: Spec = json.loads(text)
    if when == "always":
        rest = spec["normalizer"] or {"type": "Sequence", "normalizers": []}
        parts = rest["normalizers"] if rest["type"] == "Sequence" else [rest]
        prepended = [{"type": "Prepend", "prepend": " "}, *parts]
        spec["normalizer"] = {"type": "Sequence", "normalizers": prepended}
    for part in _parts(spec["pre_tokenizer"]):
        if when == "missing" and part["type"] == "Metaspace":
            part["prepend_scheme"] = "first"
        if when == "missing" and part["type"] == "ByteLevel":
            part["add_prefix_space"] = True
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders = [spec["decoder"], strip] if spec["decoder"] else [strip]
    spec["decoder"] = {"type": "Sequence", "decoders": decoders}
    return written(spec)


def byte_tokenizer(end: int | None) -> str:
    """The text of a `tokenizer.json` with a token per byte, and an end token."""
    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    spec: Spec = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    spec |= {
        "version": "1.0",
        "added_tokens": [] if end is None else [_special_token(END, end)],
        "pre_tokenizer": BYTE_LEVEL,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    return written(spec)


def pair_tokenizer(vocabulary: str, merges: str) -> str:
    """The `tokenizer.json` of a byte-level BPE in OpenAI's two files.

    Args:
        vocabulary: of encoder.json or vocab.json, the ids by token.
        merges: of vocab.bpe or merges.txt, a pair of tokens per line.

    Raises:
        ValueError: says what is wrong.
    """
    lines = [
        line
        for line in merges.replace("\r\n", "\n").split("\n")
        if line and not line.startswith("#version")
    ]
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    spec: Spec = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": split | {"use_regex": True},
        "post_processor": None,
        "decoder": split,
        "model": {"type": "BPE", "vocab": json.loads(vocabulary), "merges": lines},
    }
    return written(spec)


def byte_symbols() -> list[str]:
    """A visible character for each byte, as byte-level BPE has them (Radford et al. 2019)."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [code for code in range(256) if code not in visible]
    return [chr(byte if byte in visible else 256 + hidden.index(byte)) for byte in range(256)]


def parts_of(spec: Spec) -> Iterator[Spec]:
    """The normalizers, pre-tokenizers and decoders, those within a sequence included."""
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        yield from _parts(spec[name])


def has_metaspace(spec: Spec) -> bool:
    """Whether a mark takes the place of spaces, as in SentencePiece."""
    return any(SPACE in (p.get("replacement"), p.get("content")) for p in parts_of(spec))


def _load(text: str) -> Tokenizer:
    try:
        library = Tokenizer.from_str(text)
    except BaseException as error:
        if is_fault(error):
            raise ValueError(f"not a tokenizer.json: {error}") from None
        raise
    library.encode_special_tokens = True  # what spells a special token is text
    return library


def _check_ids(ids: dict[str, int], spec: Spec) -> None:
    if not ids:
        raise ValueError("the vocabulary is empty")
    for token in spec.get("added_tokens", []):
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
    kinds = {part["type"] for part in parts_of(spec)}
    if "ByteLevel" in kinds:
        return BYTE_LEVEL
    if has_metaspace(spec):
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
    token = ids.get(end, len(ids))
    mark_special(spec, end, token)
    return token


def mark_special(spec: Spec, name: str, token: int) -> None:
    """Make a token a special one, which no text has.

    Raises:
        ValueError: it stands for unknown characters.
    """
    model = spec["model"]
    if model["type"] == "BPE" and model.get("unk_token") == name:
        model["unk_token"] = None  # of a byte-level one: nothing is unknown
    if model.get("unk_token") == name or model.get("unk_id") == token:
        raise ValueError(f"the end token, {name!r}, stands for unknown characters, too")
    others = [added for added in spec["added_tokens"] if added["content"] != name]
    added = [*others, _special_token(name, token)]
    spec["added_tokens"] = sorted(added, key=lambda entry: int(entry["id"]))


def add_unused(spec: Spec, tokens: Iterable[int]) -> None:
    """Make ids that follow all others special tokens, which no text has."""
    spec["added_tokens"] += [_special_token(f"<|unused-{token}|>", token) for token in tokens]


def _special_token(content: str, token: int) -> Spec:
    """An entry of `added_tokens`."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": content, **flags, "special": True}


def written(spec: Spec) -> str:
    """The text of a `tokenizer.json`."""
    return json.dumps(spec, ensure_ascii=False, separators=(",", ":"))
