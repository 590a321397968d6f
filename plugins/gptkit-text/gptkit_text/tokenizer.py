"""The recipe's option `tokenizer`: trained on the text, GPT-2's, a file's, or single bytes."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    ValidationError,
)

from gptkit.codec import PromptError
from gptkit.plugin import (
    DataError,
    LocalPath,
    cache_errors,
    cache_folder,
    cached,
    digest,
    fetch,
    lock,
    note,
    read_file,
    read_json,
)
from gptkit_text.bpe import train_bpe
from gptkit_text.codec import TokenizerCodec
from gptkit_text.foreign import NOTED, OWN_FIELDS
from gptkit_text.model_folder import chat_template, content, find_codec
from gptkit_text.tokenizer_file import END, pair_tokenizer, prepare

OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_FILES = {
    "encoder.json": ("196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783", 1_042_301),
    "vocab.bpe": ("1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5", 456_318),
}
PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
LARGEST = 1 << 26  # bytes of a file
PROBES = ("One, two  three\n\tfour", "Zwölf", "A\u030a", "千🦊")
"""Texts that some tokenizers do not give back: spaces, capitals, marks, rare characters."""
HINT = (
    'tokenizer should be { train = 4096 }, "gpt2", "byte", or the path of a tokenizer.json '
    "or of a folder that has one"
)
VERSION = 2
"""Of how a tokenizer is trained: another one makes those in the cache unused."""


class TrainTokenizer(BaseModel):
    """Train a byte-level BPE on the text itself."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    train: int = Field(ge=258, le=1 << 20)
    """Tokens of the vocabulary: 256 bytes, the end token, and what is learned."""
    sample_mb: PositiveInt = 64
    """Megabytes of text to learn from, at most."""


def _kind(value: object) -> str:
    """Which of the kinds of `TokenizerOption` a value is meant to be."""
    if isinstance(value, dict | TrainTokenizer):
        return "TrainTokenizer"
    return "name" if value in ("byte", "gpt2") else "path"


TokenizerOption = Annotated[
    Annotated[TrainTokenizer, Tag("TrainTokenizer")]
    | Annotated[Literal["byte", "gpt2"], Tag("name")]
    | Annotated[LocalPath, Tag("path")],
    Discriminator(_kind),
]
"""A table for a tokenizer to be trained, a name, or the path of a file or a folder."""


def make_codec(
    option: TokenizerOption, texts: Callable[[], Iterable[str]], *, key: str, join: bool
) -> TokenizerCodec:
    """The codec that the recipe asks for.

    Args:
        option: a value of `tokenizer` in the recipe.
        texts: the texts, from the first, for a tokenizer that is trained.
        key: names the texts: the same key, the same texts.
        join: leave the end token out.

    Raises:
        DataError: a file is missing or is no tokenizer, or the cache cannot be written.
        DownloadError: GPT-2's vocabulary cannot be downloaded.
    """
    if isinstance(option, TrainTokenizer):
        return _trained(option, texts, key=key, join=join)
    if option == "byte":
        return TokenizerCodec(tokenizer="", end=None if join else 256)
    if option == "gpt2":
        text, end = _gpt2()
        codec = TokenizerCodec(tokenizer=text, end=None if join else end)
    else:
        codec = _from_path(Path(option), join=join)
    _note_changes(codec, option)
    return codec


def _trained(
    option: TrainTokenizer, texts: Callable[[], Iterable[str]], *, key: str, join: bool
) -> TokenizerCodec:
    """The tokenizer of these texts, from the cache if it is there."""
    names = json.dumps([VERSION, key, option.model_dump(), join])
    folder = cache_folder("text") / "tokenizers" / hashlib.sha256(names.encode()).hexdigest()

    def build(new: Path) -> None:
        contents = train_bpe(
            texts(), tokens=option.train, sample_bytes=option.sample_mb * 10**6, end=not join
        ).encode()
        (new / "tokenizer.json").write_bytes(contents)
        (new / "sha256").write_text(hashlib.sha256(contents).hexdigest())

    with cache_errors(folder):
        if not _is_whole(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with lock(folder.with_suffix(".lock")):  # a second process waits, then finds it
                cached(folder, build, fits=_is_whole)
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    codec = TokenizerCodec(tokenizer=text)
    size = codec.vocab_size
    if size < option.train:
        note(f"tokenizer: the text gave {size:,} tokens, not the {option.train:,} of train")
    return codec if join else TokenizerCodec(tokenizer=text, end=size - 1)


def _is_whole(folder: Path) -> bool:
    try:
        return digest(folder / "tokenizer.json") == (folder / "sha256").read_text()
    except (OSError, ValueError):
        return False


def _gpt2() -> tuple[str, int]:
    """GPT-2's tokenizer, of OpenAI's own files."""
    hint = 'or set tokenizer to a folder that has encoder.json and vocab.bpe, or to "byte"'
    with cache_errors(cache_folder("downloads")):
        files = [
            fetch(OPENAI + name, sha256=sha256, size=size, hint=hint)
            for name, (sha256, size) in GPT2_FILES.items()
        ]
    return prepare(pair_tokenizer(*map(_text, files)), end=END)


def _from_path(path: Path, *, join: bool) -> TokenizerCodec:
    """The codec of a file or a folder.

    Raises:
        DataError: it is missing, cannot be read, or is no tokenizer.
    """
    folder = path if path.is_dir() else path.parent
    if path.suffix.lower() == ".gguf":
        raise DataError(
            f"{path}: is no tokenizer, but a model",
            hint=f'gptkit import {path} --out RUN, then tokenizer = "RUN"',
        )
    try:
        noted = {} if join else _noted(folder)
        whole = path in (folder, folder / "tokenizer.json")
        if whole and not noted and (codec := find_codec(folder)):
            bare = {"end": None, "begin": None, "stops": ()} if join else {}
            return TokenizerCodec(**codec.model_dump() | bare)
        text, end = prepare(_json_text(path), end=_named_end(folder))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file or folder", hint=HINT) from error
    except OSError as error:
        where = error.filename or path
        raise DataError(f"{where}: cannot be read: {error.strerror or error}", hint=HINT) from error
    except ValueError as error:
        raise DataError(f"{path}: {error}", hint=HINT) from error
    try:
        return TokenizerCodec(tokenizer=text, end=None if join else end, **noted)
    except ValidationError as error:
        fault = f"{path}: tokenizer_config.json: {NOTED}: {error.errors()[0]['msg']}"
        raise DataError(fault, hint=HINT) from error


def _noted(folder: Path) -> dict[str, Any]:
    """What a folder that gptkit wrote tells of the codec, besides its tokenizer and end token."""
    try:
        noted = dict(read_json(folder / "tokenizer_config.json")[NOTED])
    except (OSError, KeyError, TypeError, ValueError):  # a folder of another program
        return {}
    if wrong := noted.keys() - OWN_FIELDS:
        raise ValueError(f"tokenizer_config.json: {NOTED}: unknown key {min(wrong)[:80]!r}")
    return {**noted, "chat_template": chat_template(folder)}


def _json_text(path: Path) -> str:
    if not path.is_dir():
        return _text(path)
    if (path / "tokenizer.json").is_file():
        return _text(path / "tokenizer.json")
    for names in PAIRS:
        if all((path / name).is_file() for name in names):
            return pair_tokenizer(*(_text(path / name) for name in names))
    raise ValueError("has no tokenizer.json, nor encoder.json and vocab.bpe")


def _note_changes(codec: TokenizerCodec, place: object) -> None:
    """Say how a tokenizer changes texts, if it does."""
    name = "" if codec.end is None else _spelling(codec, codec.end)
    for text in (*PROBES, name):
        try:
            tokens = codec.divide(text)
        except PromptError as error:
            raise DataError(f"{place}: {error}", hint=HINT) from error
        found = codec.decode(tokens).decode(errors="replace")
        if found != text:
            note(f"{place}: this tokenizer changes texts: {text!r} becomes {found!r}")
            return


def _spelling(codec: TokenizerCodec, token: int) -> str:
    """How a tokenizer spells a special token."""
    added = json.loads(codec.tokenizer_json())["added_tokens"]
    return "".join(each["content"] for each in added if each["id"] == token)


def _text(path: Path) -> str:
    try:
        return read_file(path, limit=LARGEST).decode()
    except UnicodeDecodeError:
        raise ValueError("not a tokenizer.json: not UTF-8") from None


def _named_end(folder: Path) -> str | None:
    """The end token that a tokenizer_config.json names, if there is one."""
    try:
        named = read_json(folder / "tokenizer_config.json")["eos_token"]
    except (FileNotFoundError, KeyError, TypeError):
        return None
    except ValueError as error:
        raise ValueError(f"tokenizer_config.json: {error}") from error
    return content(named) or None
