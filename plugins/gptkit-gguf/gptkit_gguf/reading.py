"""A model in a GGUF file as gptkit has it; nothing of its tensors is read before it is needed."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptkit.plugin import ImportedModel, RunError
from gptkit_gguf.header import Header, read_header
from gptkit_gguf.metadata import config_of
from gptkit_gguf.names import layout
from gptkit_gguf.tensors import HfTensors
from gptkit_gguf.vocabulary import TokenizerData, read_vocabulary
from gptkit_hf import reference
from gptkit_hf.families import to_options
from gptkit_hf.folder import dataset_table
from gptkit_hf.mapping import ToGptkit
from gptkit_text.codec import TokenizerCodec
from gptkit_text.foreign import codec_files, foreign_codec

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
        files=codec_files(codec),
        dataset=partial(dataset_table, codec, options["block_size"]),
        about=_about(header, config, tokenizer),
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
    with np.errstate(all="ignore"):  # what is not finite is not equal to anything
        return reference.logits(config, tensors, ids, interleaved=pairs)


def codec_of(path: Path, tokenizer: TokenizerData, vocab_size: int) -> TokenizerCodec:
    """The codec of a tokenizer; documents and prompts begin as in a folder of transformers.

    Raises:
        RunError: the tokenizer is damaged, or does not fit the model.
    """
    try:
        return foreign_codec(
            tokenizer.text,
            size=vocab_size,
            end=tokenizer.end,
            begin=tokenizer.begin,
            stops=tokenizer.stops,
            chat_template=tokenizer.chat_template,
        )
    except ValueError as error:  # pydantic's, too
        raise RunError(f"{path}: damaged: its tokenizer: {error}") from error


def _about(header: Header, config: Mapping[str, Any], tokenizer: TokenizerData) -> dict[str, Any]:
    keys = {key: header.fields.get(f"general.{key}") for key in NOTED}
    types = {place.kind.name for place in header.tensors.values()}
    return {
        "format": "gguf",
        "model_type": config["model_type"],
        "dtypes": sorted(types),
        "add_bos_token": tokenizer.begin is not None,
        **{key: value for key, value in keys.items() if isinstance(value, str)},
    }
