"""Tokenizers of models that another program has trained: their codec, and the files that hold it.

A run of an imported model has these files, so that the data set `text` gives the same codec.
"""

import json
from collections.abc import Sequence
from typing import Any

from gptkit_text.codec import TokenizerCodec
from gptkit_text.tokenizer_file import (
    END,
    Spec,
    add_unused,
    mark_special,
    read_tokenizer,
    space_before,
    without_additions,
    written,
)

NOTED = "gptkit"
"""The table of a tokenizer_config.json that has further fields of the codec."""
OWN_FIELDS = ("begin", "stops", "space")
"""Those fields."""
MOST_UNUSED = 1 << 16
"""Ids of a model beyond its tokenizer, which are added to that one by one."""


def foreign_codec(
    text: str,
    *,
    size: int,
    end: int | None = None,
    begin: int | None = None,
    stops: Sequence[int] = (),
    chat_template: str | None = None,
) -> TokenizerCodec:
    """The codec of a model's tokenizer.

    Args:
        text: of its tokenizer.json.
        size: of the model's vocabulary. Ids that the tokenizer does not have become special tokens.
        end: the token that ends a document, and begins the next one.
        begin: the token that the model has before every text. If None, it is the one that the
            tokenizer adds, or else GPT-2's end token, or the end token.
        stops: tokens that end a sample, if they are not `end` alone.
        chat_template: in Jinja.

    Raises:
        ValueError: says what is wrong with the tokenizer, or with an id.
    """
    file = read_tokenizer(text)
    spec, names = without_additions(file.spec), {number: n for n, number in file.ids.items()}
    if len(names) > size:
        raise ValueError(f"has {len(names):,} tokens, but the model knows {size:,}")
    if size - len(names) > MOST_UNUSED:
        raise ValueError(f"has {len(names):,} tokens, but the model knows {size:,}: far more")
    for what, token in (("end", end), ("begin", begin), *(("stop", stop) for stop in stops)):
        if token is not None and token not in names:
            raise ValueError(f"the {what} token {token} is none of its {len(names):,} tokens")
    begin = _begin(json.loads(text), file.ids, end) if begin is None else begin
    for token in dict.fromkeys((end, begin)):
        if token is not None:
            mark_special(spec, names[token], token)
    add_unused(spec, range(len(names), size))  # many models have more ids than their tokenizers
    several = tuple(dict.fromkeys(stops))
    return TokenizerCodec(
        tokenizer=written(spec),
        end=end,
        begin=None if begin == end else begin,
        stops=() if several == (end,) else several,
        space=space_before(text),
        chat_template=chat_template,
    )


def codec_files(codec: TokenizerCodec) -> dict[str, bytes]:
    """The files of a folder from which the data set `text` makes this codec."""
    files = {
        "tokenizer.json": codec.tokenizer,
        "tokenizer_config.json": json.dumps(tokenizer_config(codec), indent=2, ensure_ascii=False),
    }
    if codec.chat_template is not None:
        files["chat_template.jinja"] = codec.chat_template
    return {name: contents.encode() for name, contents in files.items()}


def tokenizer_config(codec: TokenizerCodec) -> dict[str, Any]:
    """What a tokenizer_config.json has of a codec: its special tokens, and its own fields."""
    spec: Spec = json.loads(codec.tokenizer_json())
    names = {token["id"]: token["content"] for token in spec["added_tokens"]}
    config: dict[str, Any] = {}
    if codec.start_token is not None:
        config["bos_token"] = names[codec.start_token]
    if codec.end is not None:
        config["eos_token"] = names[codec.end]
    noted = codec.model_dump(mode="json", include={*OWN_FIELDS})
    return config | {NOTED: noted}


def _begin(spec: Spec, ids: dict[str, int], end: int | None) -> int | None:
    """The token with which texts begin."""
    added = _first_token(spec.get("post_processor"))
    if added in ids:
        return ids[added]
    special = {token["content"] for token in spec.get("added_tokens", []) if token["special"]}
    return ids[END] if END in special else end


def _first_token(processor: Spec | None) -> str | None:
    """The name of the special token that a post-processor puts before a text."""
    if processor is None:
        return None
    for part in processor.get("processors", [processor]):
        if part.get("type") == "TemplateProcessing" and part.get("single"):
            first = part["single"][0].get("SpecialToken")
            return first["id"] if first else None
    return None
