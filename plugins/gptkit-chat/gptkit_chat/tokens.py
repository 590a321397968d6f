"""The codec of a chat: a tokenizer with a template, the special tokens of that, and its ends."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gptkit.plugin import DataError, read_file, read_json
from gptkit_chat.encoding import ChatEncoder, added_id
from gptkit_chat.template import CHATML, CHATML_TOKENS, DAY, ChatError
from gptkit_text.codec import TokenizerCodec
from gptkit_text.model_folder import chat_template, content
from gptkit_text.tokenizer import TokenizerOption, make_codec
from gptkit_text.tokenizer_file import byte_tokenizer, with_special

LARGEST = 1 << 20  # bytes of a template
TRIED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
"""A conversation in which the end of an answer is looked for."""


def chat_codec(
    tokenizer: TokenizerOption,
    template: str,
    special_tokens: Sequence[str],
    texts: Callable[[], Iterable[str]],
    *,
    key: str,
) -> TokenizerCodec:
    """The codec that the recipe asks for.

    Args:
        tokenizer: as for the data set of texts.
        template: "auto", "chatml", or the path of a .jinja file.
        special_tokens: that the tokenizer is to have.
        texts: for a tokenizer that is trained.
        key: names the texts.

    Raises:
        DataError: a file is missing or wrong, or there is no template.
        DownloadError: GPT-2's vocabulary cannot be downloaded.
    """
    codec = make_codec(tokenizer, texts, key=key, join=False)
    folder = _folder(tokenizer)
    source, wanted = _source(codec, template, folder)
    fields = codec.model_dump()
    if missing := [name for name in (*wanted, *special_tokens) if added_id(codec, name) is None]:
        text = codec.tokenizer or byte_tokenizer(codec.end)
        fields["tokenizer"] = with_special(text, missing)
    fields["chat_template"] = source
    codec = TokenizerCodec(**fields)
    if codec.begin is None and folder and (name := _named_begin(folder)):
        fields["begin"] = added_id(codec, name)
        codec = TokenizerCodec(**fields)
    try:
        tried = ChatEncoder(codec, now=DAY).encode(TRIED)
    except ChatError as error:
        raise DataError(
            f"template = {template!r}: {error}",
            hint="the template should put a special token after each answer, named in [dataset] as "
            'special_tokens = [...] if the tokenizer lacks it; or set template = "chatml"',
        ) from error
    end = max(i for i, learned in enumerate(tried.learned) if learned)
    fields["stops"] = tuple(dict.fromkeys((tried.ids[end], *codec.stop_tokens)))
    if codec.begin is None and tried.ids[0] in _special_ids(codec):
        fields["begin"] = tried.ids[0]
    return TokenizerCodec(**fields)


def _folder(tokenizer: TokenizerOption) -> Path | None:
    """Where the tokenizer's other files are, if it has any."""
    if not isinstance(tokenizer, Path):
        return None
    return tokenizer if tokenizer.is_dir() else tokenizer.parent


def _source(codec: TokenizerCodec, template: str, folder: Path | None) -> tuple[str, Sequence[str]]:
    """The template in Jinja, and the special tokens that it needs."""
    if template == "chatml":
        return CHATML, CHATML_TOKENS
    if template != "auto":
        return _read(Path(template)), ()
    if folder is None:
        return CHATML, CHATML_TOKENS
    try:
        own = codec.chat_template or chat_template(folder)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: its chat template cannot be read: {error}") from error
    if own is None:
        raise DataError(
            f"{folder}: this tokenizer has no chat template",
            hint='set template in [dataset] to "chatml", or to the path of a .jinja file',
        )
    return own, ()


def _read(path: Path) -> str:
    hint = 'template should be "auto", "chatml", or the path of a .jinja file'
    try:
        return read_file(path, limit=LARGEST).decode()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", hint=hint) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", hint=hint) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8", hint=hint) from error


def _named_begin(folder: Path) -> str | None:
    """The bos token that a tokenizer_config.json names, if there is one."""
    try:
        return content(read_json(folder / "tokenizer_config.json")["bos_token"]) or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _special_ids(codec: TokenizerCodec) -> set[int]:
    return {token for token, piece in enumerate(codec.token_bytes) if not piece}
