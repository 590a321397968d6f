"""What a data set's codec must be before anything is trained with it. Imports no torch."""

import json
from typing import Any

from gptkit.codec import CONTRACT, Codec, TextCodec, contract_fault, declared_contract
from gptkit.errors import DataError, PluginError


def check_loaded(codec: Codec, vocab_size: int) -> None:
    """Refuse a codec whose mistake would otherwise show only when samples are drawn.

    Args:
        codec: of loaded data.
        vocab_size: of that data.

    Raises:
        PluginError: names the codec, the fault and the next move.
        DataError: its texts are of another number of tokens.
    """
    if not isinstance(codec, Codec):
        raise PluginError(
            f"Data.codec should be a codec, got {codec!r}", hint="codec=MyCodec(), an object"
        )
    _check_contract(type(codec))
    kind = type(codec).__name__
    if not _survives_json(codec):
        raise PluginError(
            f"{kind}: a checkpoint cannot hold its fields: they do not survive JSON",
            hint="fields may hold text in Unicode, finite numbers, true, false, lists and dicts",
        )
    stops = codec.stop_tokens
    if not isinstance(stops, tuple):
        raise PluginError(
            f"{kind}.stop_tokens should be a tuple of token ids, got {stops!r}",
            hint="a tuple of one id is (END,); no stop tokens are ()",
        )
    check_ids(stops, f"{kind}.stop_tokens", vocab_size)
    _check_starts(codec, vocab_size)
    if isinstance(codec, TextCodec) and len(codec.token_bytes) != vocab_size:
        raise DataError(
            f"{kind}.token_bytes has {len(codec.token_bytes)} items for {vocab_size} token ids",
            hint='give every id below vocab_size its bytes; b"" if it is no text',
        )


def _check_contract(kind: type[Codec]) -> None:
    if fault := contract_fault(kind):
        undeclared = declared_contract(kind) is None
        raise PluginError(
            f"codec {kind.__name__} {fault}",
            hint=f"write contract = {CONTRACT} in the class"
            if undeclared
            else "install versions of gptkit and of the codec that fit together",
        )


def _check_starts(codec: Codec, vocab_size: int) -> None:
    """Refuse tokens that no sample can start with."""
    kind = type(codec).__name__
    starts = {f'{kind}.encode("")': codec.encode("")}
    if type(codec).starts is not Codec.starts:
        starts |= {f"{kind}.starts[{i}]": start for i, start in enumerate(codec.starts)}
    for what, start in starts.items():
        if not isinstance(start, list | tuple) or not start:
            raise PluginError(
                f"{what} should be a list of at least one token id, got {start!r}",
                hint="a sample without a prompt needs a token to start with, such as a newline",
            )
        check_ids(start, what, vocab_size)


def _survives_json(codec: Codec) -> bool:
    try:
        return type(codec).model_validate(json.loads(codec.model_dump_json())) == codec
    except ValueError:  # pydantic's errors, too
        return False


def check_ids(ids: Any, what: str, vocab_size: int) -> None:
    """Refuse what is no token id, or none below vocab_size.

    Raises:
        PluginError: names `what` holds the ids, the fault and the next move.
    """
    for token in ids:
        if type(token) is not int:
            raise PluginError(
                f"{what} should hold token ids, got {token!r} ({type(token).__name__})",
                hint="ids are Python's integers: int(x) makes one",
            )
        if not 0 <= token < vocab_size:
            raise PluginError(
                f"{what} should hold ids below vocab_size, {vocab_size}, got {token}",
                hint=f"vocab_size counts every id, special ones, too: {token + 1}, or the id is "
                "wrong"
                if token >= 0
                else "ids are 0 .. vocab_size - 1",
            )
