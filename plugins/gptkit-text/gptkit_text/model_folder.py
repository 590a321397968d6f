"""The tokenizer of a model that transformers opens: of a folder with a config.json beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptkit.plugin import DataError, read_file, read_json
from gptkit_text.codec import TokenizerCodec
from gptkit_text.foreign import foreign_codec
from gptkit_text.tokenizer_file import read_tokenizer

LARGEST = 1 << 26  # bytes of a file
HINT = (
    "where transformers is: AutoTokenizer.from_pretrained(FOLDER, use_fast=True)"
    ".save_pretrained(FOLDER) writes a tokenizer.json"
)


def find_codec(folder: Path) -> TokenizerCodec | None:
    """The codec of a folder with a model and its tokenizer; None if it is no such folder.

    Raises:
        DataError: a file is damaged, or the tokenizer does not fit the model.
    """
    try:
        config = _object(folder / "config.json")
    except (OSError, ValueError):
        return None
    size = config.get("vocab_size")
    if "model_type" not in config or type(size) is not int:
        return None
    return read_codec(folder, config, size=size) if (folder / "tokenizer.json").is_file() else None


def read_codec(folder: Path, config: Mapping[str, Any], *, size: int) -> TokenizerCodec:
    """The codec of a model's tokenizer.json.

    Args:
        folder: with the files.
        config: the contents of its config.json.
        size: of the vocabulary.

    Raises:
        DataError: there is no tokenizer.json, or it does not fit the model.
    """
    place = folder / "tokenizer.json"
    if not place.is_file():
        raise DataError(f"{folder}: has no tokenizer.json", hint=HINT)
    try:
        text = read_file(place, limit=LARGEST).decode()
        ids = read_tokenizer(text).ids
        named = _object(folder / "tokenizer_config.json")
        stops = _stops(folder, config)
        end = ids.get(content(named.get("eos_token")), stops[0] if stops else None)
        begin = ids.get(content(named.get("bos_token")))
        return foreign_codec(
            text,
            size=size,
            end=end,
            begin=begin if named.get("add_bos_token") is True else None,
            stops=stops,
            chat_template=chat_template(folder),
        )
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {error}") from error
    except ValueError as error:  # pydantic's, too
        raise DataError(f"{place}: {error}", hint="its tokenizer does not fit the model") from error


def chat_template(folder: Path) -> str | None:
    """The template of a chat that a folder of Hugging Face tokenizers has, if there is one.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is not JSON, or not UTF-8.
    """
    try:
        return read_file(folder / "chat_template.jinja", limit=LARGEST).decode()
    except FileNotFoundError:
        pass
    found = _object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def content(token: object) -> str:
    """The name of a token in a tokenizer_config.json; "" if there is none."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if there is no such file.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds something else; names the file.
    """
    try:
        found = read_json(path, limit=LARGEST)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name}: is no JSON object")
    return found


def _stops(folder: Path, config: Mapping[str, Any]) -> list[int]:
    """The ids that end a text, of generation_config.json or config.json."""
    name = "generation_config.json"
    found = _object(folder / name).get("eos_token_id")
    if found is None:
        name, found = "config.json", config.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if any(type(token) is not int or token < 0 for token in ids):
        shown = str(found)[:80]
        raise ValueError(f"{name}: eos_token_id = {shown} should be a token id")
    return ids
