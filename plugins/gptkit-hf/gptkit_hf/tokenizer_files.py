"""The files of a model's tokenizer, as transformers reads them."""

import json
from collections.abc import Sequence
from typing import Any

from gptkit.codec import Codec, TextCodec
from gptkit_text.codec import TokenizerCodec
from gptkit_text.foreign import tokenizer_config

CHARACTER = "[\\s\\S]"
"""A regular expression of a single character, line feeds included."""


def tokenizer_files(codec: Codec, block_size: int) -> dict[str, str]:
    """The texts of the files by name.

    There are none for images, nor for texts whose tokens are no characters and whose codec has no
    tokenizer.json.
    """
    contents = _contents(codec)
    if contents is None:
        return {}
    files = {"tokenizer.json": contents}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }
    template = None
    if isinstance(codec, TokenizerCodec):
        config, template = config | tokenizer_config(codec), codec.chat_template
    elif codec.stop_tokens and (names := _special_names(contents)):
        config["eos_token"] = names[codec.stop_tokens[0]]
    if template is None:
        config["split_special_tokens"] = True  # what spells a special token is text
    else:
        config["chat_template"] = files["chat_template.jinja"] = template
    text = json.dumps(config, indent=2, ensure_ascii=False)
    return files | {"tokenizer_config.json": text + "\n"}


def character_tokenizer(pieces: Sequence[str], start: Sequence[int] = ()) -> str:
    """The text of a tokenizer.json with a token per character; it refuses all others.

    Args:
        pieces: the characters by id; "" for a special token.
        start: special tokens that are put before a text.
    """
    names = [piece or f"<|{token}|>" for token, piece in enumerate(pieces)]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": token, "content": name, **flags, "special": True}
        for token, name in enumerate(names)
        if not pieces[token]
    ]
    spec: dict[str, Any] = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    spec |= {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": CHARACTER},
            "behavior": "Isolated",
            "invert": False,
        },
        "decoder": {"type": "Fuse"},
        # The token of unknown characters is none, so that the library refuses them.
        "model": {
            "type": "WordLevel",
            "vocab": {name: token for token, name in enumerate(names)},
            "unk_token": "<|unknown|>",
        },
    }
    if start:
        spec["post_processor"] = _begin_with([names[token] for token in start], start)
    return json.dumps(spec, ensure_ascii=False)


def _contents(codec: Codec) -> str | None:
    """The text of a tokenizer.json."""
    if not isinstance(codec, TextCodec):
        return None
    if (own := codec.tokenizer_json()) is not None:
        return own
    try:
        pieces = [piece.decode() for piece in codec.token_bytes]
    except UnicodeDecodeError:
        return None
    if any(len(piece) > 1 for piece in pieces):
        return None
    start = codec.starts[0]
    return character_tokenizer(pieces, start if not any(pieces[token] for token in start) else ())


def _begin_with(names: Sequence[str], ids: Sequence[int]) -> dict[str, Any]:
    special = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    first, second = ({"Sequence": {"id": letter, "type_id": 0}} for letter in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [*special, first],
        "pair": [*special, first, *special, second],
        "special_tokens": {
            name: {"id": name, "ids": [token], "tokens": [name]}
            for name, token in zip(names, ids, strict=True)
        },
    }


def _special_names(contents: str) -> dict[int, str]:
    """The names of special tokens by id."""
    return {token["id"]: token["content"] for token in json.loads(contents)["added_tokens"]}
