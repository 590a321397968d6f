"""A model in a GGUF file as gptkit has it; nothing of its tensors is read before it is needed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from gptkit.plugin import ImportedModel, RunError
from gptkit_gguf.header import Header, read_header
from gptkit_gguf.metadata import config_of
from gptkit_gguf.names import layout
from gptkit_gguf.tensors import HfTensors
from gptkit_gguf.vocabulary import TokenizerData, read_vocabulary
from gptkit_hf import reference
from gptkit_hf.families import to_options
from gptkit_hf.mapping import ToGptkit
from gptkit_text.codec import TokenizerCodec

NOTED = ("name", "license", "license.link", "organization", "basename", "finetune", "source.url")
"""Keys of the metadata, after "general.", that an import notes."""


def read_model(path: Path) -> ImportedModel:
    """Read the model in a GGUF file.

    Raises:
        UsageError: the file cannot be read, or its model is not supported.
        RunError: it is damaged.
    """
    header = read_header(path)
    config = config_of(header)
    options = to_options(config)
    tokenizer = read_vocabulary(header)
    codec = codec_of(path, tokenizer, config["vocab_size"])
    places = layout(config)

    def logits(ids: Sequence[int]) -> NDArray[np.float32]:
        return file_logits(config, header, ids)

    return ImportedModel(
        config=options,
        weights=ToGptkit(config, HfTensors(header, places)),
        codec=codec,
        files=_files(codec, tokenizer),
        dataset=lambda folder: {
            "use": "text",
            "tokenizer": str(folder),
            "block_size": options["block_size"],
        },
        about=_about(header, config),
        logits=logits,
    )


def file_logits(
    config: Mapping[str, Any], header: Header, ids: Sequence[int]
) -> NDArray[np.float32]:
    """The logits, (T, vocab_size), of token ids (T,), from a file's own tensors.

    Queries and keys stay as llama.cpp has them, and are rotated in its way.
    """
    places = layout(config)
    pairs = any(place.change == "pairs" for place in places.values())
    tensors = HfTensors(header, places, pairs=pairs)
    return reference.logits(config, tensors, ids, interleaved=pairs)


def codec_of(path: Path, tokenizer: TokenizerData, vocab_size: int) -> TokenizerCodec:
    """The codec of a tokenizer: prompts get the tokens that llama.cpp gives them.

    Raises:
        RunError: the vocabulary is damaged, or larger than the embedding.
    """
    if len(tokenizer.tokens) > vocab_size:
        raise RunError(
            f"{path}: damaged: {len(tokenizer.tokens):,} tokens, but {vocab_size:,} embeddings"
        )
    try:
        return TokenizerCodec(
            tokenizer=tokenizer.tokenizer,
            end=None if tokenizer.begin is None else tokenizer.end,
            begin=tokenizer.begin,
            stops=tokenizer.stops,
            space="always" if tokenizer.space else None,
            chat_template=tokenizer.chat_template,
        )
    except ValidationError as error:
        raise RunError(f"{path}: damaged: tokenizer: {error.errors()[0]['msg']}") from error


def _files(codec: TokenizerCodec, tokenizer: TokenizerData) -> dict[str, bytes]:
    """The tokenizer in the files that transformers has, and the data set `text` reads."""
    noted = {"begin": codec.begin, "stops": codec.stops, "space": codec.space}
    config: dict[str, Any] = {"gptkit": noted}
    if tokenizer.end is not None:
        config["eos_token"] = tokenizer.tokens[tokenizer.end]
    if tokenizer.begin is not None:
        config["bos_token"] = tokenizer.tokens[tokenizer.begin]
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    return {
        "tokenizer.json": codec.tokenizer_json().encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }


def _about(header: Header, config: Mapping[str, Any]) -> dict[str, Any]:
    keys = {key: header.fields.get(f"general.{key}") for key in NOTED}
    types = {place.kind.name for place in header.tensors.values()}
    return {
        "format": "gguf",
        "model_type": config["model_type"],
        "dtypes": sorted(types),
        **{key: value for key, value in keys.items() if isinstance(value, str)},
    }
