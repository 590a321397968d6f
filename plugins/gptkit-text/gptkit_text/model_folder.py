"""The tokenizer of a model that transformers opens: of a folder with a config.json beside it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    """The codec of a folder with a model and its tokenizer.

    None if there is no model, if its vocabulary has not all of the tokenizer's tokens, or if none
    of them ends a text: then the tokenizer is taken for itself.

    Raises:
        DataError: a file is damaged.
    """
    config, place = _read(folder / "config.json"), folder / "tokenizer.json"
    size = config.get("vocab_size")
    if "model_type" not in config or type(size) is not int or not place.is_file():
        return None
    with _placed(folder):
        if len(read_tokenizer(_text(place)).ids) > size:
            return None
    codec = read_codec(folder, config, size=size)
    return None if codec.end is None else codec


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
    with _placed(folder):
        text = _text(place)
        ids = read_tokenizer(text).ids
        named = _object(folder / "tokenizer_config.json")
        stops = _stops(folder, config)
        begin = content(named.get("bos_token")) if named.get("add_bos_token") is True else ""
        if begin and begin not in ids:
            raise ValueError(f"tokenizer_config.json: bos_token {begin[:80]!r} is no token")
        return foreign_codec(
            text,
            size=size,
            end=ids.get(content(named.get("eos_token")), stops[0] if stops else None),
            begin=ids.get(begin),
            stops=stops,
            chat_template=chat_template(folder),
        )


def chat_template(folder: Path) -> str | None:
    """The template of a chat that a folder of Hugging Face tokenizers has, if there is one.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is not JSON, or not UTF-8.
    """
    try:
        return _text(folder / "chat_template.jinja")
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


@contextmanager
def _placed(folder: Path) -> Iterator[None]:
    """Name the folder of files that cannot be read, or do not fit each other."""
    try:
        yield
    except OSError as error:
        place = error.filename or folder
        raise DataError(f"{place}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # pydantic's, too
        raise DataError(
            f"{folder}: {error}", hint="get the model again: its files do not fit each other"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    with _placed(path.parent):
        return _object(path)


def _text(path: Path) -> str:
    try:
        return read_file(path, limit=LARGEST).decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path.name}: not UTF-8") from None


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
