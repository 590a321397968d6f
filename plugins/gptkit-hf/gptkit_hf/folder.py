"""A folder of transformers: its config.json, its weights and its tokenizer."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptkit.plugin import ImportedModel, RunError, UsageError, read_file, read_json
from gptkit_hf import reference
from gptkit_hf.families import family_of, to_options
from gptkit_hf.mapping import ToGptkit
from gptkit_hf.safetensors_files import Entry, Tensors, read_tensors
from gptkit_hf.tensors import HEAD, CheckedTensors
from gptkit_text.codec import TokenizerCodec
from gptkit_text.foreign import codec_files
from gptkit_text.model_folder import read_codec

LARGEST = 1 << 26  # bytes of a file of text
TRAINED = 512
"""Tokens of context in the recipe of an imported run, which may be trained on a laptop; the model
keeps its own."""
LICENSE = re.compile(r"^license:\s*[\"']?([A-Za-z0-9._+-]+)", re.MULTILINE)


@dataclass(frozen=True)
class ModelFolder:
    """What a folder of transformers holds."""

    path: Path
    config: Mapping[str, Any]
    options: Mapping[str, Any]
    """Of [model], with vocab_size and block_size."""
    tensors: CheckedTensors


def open_folder(path: Path) -> ModelFolder:
    """Read a folder's config.json and the names and shapes of its tensors.

    Raises:
        UsageError: it is no folder of a model that gptkit can have.
        RunError: a file is damaged or missing.
    """
    config = _object(path / "config.json")
    if config is None:
        raise UsageError(f"{path}: has no config.json", hint="choose a folder of transformers")
    with placed(path):
        options = to_options(config)
        found = _canonical(read_tensors(path), family_of(config).prefix)
        tensors = CheckedTensors(config, found)
        for name, entry in found.entries.items():
            if name in tensors.shapes and entry.shape != tensors.shapes[name]:
                tensors[name]  # raises what says so
        _check_tied(options, found)
    return ModelFolder(path, config, options, tensors)


def imported(path: Path, *, about: Mapping[str, Any]) -> ImportedModel:
    """The model of a folder, with its tokenizer.

    Args:
        path: of the folder.
        about: what is known of its source.

    Raises:
        UsageError: it cannot be imported; says why.
        RunError: a file is damaged or missing.
    """
    folder = open_folder(path)
    codec = read_codec(path, folder.config, size=folder.options["vocab_size"])
    known = {"model_type": folder.config["model_type"], "license": _license(path), **about}
    return ImportedModel(
        config=folder.options,
        weights=_Placed(path, ToGptkit(folder.config, folder.tensors)),
        codec=codec,
        files=codec_files(codec),
        dataset=partial(dataset_table, codec, folder.options["block_size"]),
        about={name: value for name, value in known.items() if value is not None},
        logits=_logits(folder),
    )


def dataset_table(codec: TokenizerCodec, block_size: int, folder: Path) -> dict[str, Any]:
    """The table [dataset] of a recipe whose run folder has the tokenizer's files."""
    join = {} if codec.end is not None else {"documents": "join"}
    return {"use": "text", "tokenizer": str(folder), "block_size": min(block_size, TRAINED), **join}


@contextmanager
def placed(path: Path) -> Iterator[None]:
    """Put the folder before what an error says."""
    try:
        yield
    except (UsageError, RunError) as error:
        if not str(error).startswith(str(path)):
            raise type(error)(f"{path}: {error}", hint=error.hint) from error
        raise


class _Placed(Mapping[str, Tensor]):
    """Tensors of a folder, whose errors name it."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self._path, self._tensors = path, tensors

    def __getitem__(self, name: str) -> Tensor:
        with placed(self._path):
            return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _logits(folder: ModelFolder) -> Callable[..., reference.Floats]:
    def compute(ids: Any) -> reference.Floats:
        with placed(folder.path):
            return reference.logits(folder.config, folder.tensors, ids)

    return compute


def _object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is none."""
    try:
        found = read_json(path, limit=LARGEST)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}", hint="get the model again") from error
    if not isinstance(found, dict):
        raise RunError(f"{path}: is no JSON object", hint="get the model again")
    return found


def _canonical(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors under the names of a model with a head; older files leave the prefix out."""
    if any(name.startswith(prefix) for name in tensors):
        return tensors
    renamed: dict[str, Entry] = {
        name if name == HEAD else prefix + name: entry for name, entry in tensors.entries.items()
    }
    return Tensors(renamed)


def _check_tied(options: Mapping[str, Any], tensors: Tensors) -> None:
    """Refuse a head of its own where config.json says that it is the embedding."""
    if not options["tie_embeddings"] or HEAD not in tensors:
        return
    embedding = next(n for n in tensors if n.endswith((".wte.weight", ".embed_tokens.weight")))
    if not torch.equal(tensors[embedding], tensors[HEAD]):
        raise RunError(
            f"config.json says tie_word_embeddings, but {HEAD} is not equal to {embedding}",
            hint="set tie_word_embeddings to false in its config.json",
        )


def _license(path: Path) -> str | None:
    """What the front matter of its README.md says."""
    try:
        text = read_file(path / "README.md", limit=LARGEST).decode(errors="replace")
    except OSError:
        return None
    front = text.split("---", 2)
    found = LICENSE.search(front[1]) if text.startswith("---") and len(front) == 3 else None
    return found[1] if found else None
