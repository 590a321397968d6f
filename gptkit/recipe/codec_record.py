"""Codecs in checkpoints and exported models: the name of their entry point, and their options."""

import re
import sys
from importlib.metadata import EntryPoint
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from gptkit.codec import Codec, TextCodec
from gptkit.errors import PluginError
from gptkit.recipe.problems import first_fault
from gptkit.recipe.registry import Entry, check_contract, find, installed, is_from, load

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
"""The names of distributions."""


class CodecRecord(BaseModel):
    """A codec in a checkpoint or an exported model; `make_codec` makes it without its data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    distribution: str
    options: dict[str, Any]


def record_codec(codec: Codec) -> CodecRecord:
    """The record from which `make_codec` makes an equal codec.

    Raises:
        PluginError: the codec's class has no entry point in the group `gptkit.codecs`, or is
            written for another contract.
    """
    entry = codec_entry(codec)
    check_contract(entry, type(codec))
    options = codec.model_dump(mode="json")
    return CodecRecord(name=entry.name, distribution=entry.distribution, options=options)


def codec_entry(codec: Codec) -> Entry:
    """The entry point of a codec's class.

    Raises:
        PluginError: there is none in the group `gptkit.codecs`.
    """
    kind = type(codec)
    value = f"{kind.__module__}:{kind.__qualname__}"
    entries = installed("codec")
    for entry in sorted(entries, key=lambda entry: entry.point.value != value):
        if entry.point.value == value or _exports(entry.point, kind):
            return entry
    raise PluginError(
        f"the codec {value} has no entry point",
        hint=f'its pyproject.toml needs [project.entry-points."gptkit.codecs"] NAME = "{value}"',
    )


def have_same_tokens(a: Codec, b: Codec) -> bool:
    """Whether two codecs have the same token ids, which may start and stop samples differently."""
    if a == b:
        return True
    if not (isinstance(a, TextCodec) and isinstance(b, TextCodec) and type(a) is type(b)):
        return False
    return list(a.token_bytes) == list(b.token_bytes)


def make_codec(record: CodecRecord) -> Codec:
    """The codec that a checkpoint or an exported model stored.

    Raises:
        PluginError: its distribution is not installed, or it does not take these options.
    """
    named = NAME.fullmatch(record.distribution)  # else it is no part of a line to paste
    claims = [entry for entry in installed("codec") if entry.name == record.name]
    if not claims:
        raise PluginError(
            f'the codec "{record.name}" that this model needs is not installed',
            hint=f"pip install {record.distribution}"
            if named
            else "install the plugin that has it",
        )
    own = [entry for entry in claims if is_from(entry, record.distribution)]
    codec = load(own[0] if own else find("codec", record.name))
    try:
        made = codec.model_validate(record.options)
    except ValidationError as error:
        raise PluginError(
            f'the codec "{record.name}" does not accept the options in the model: '
            f"{first_fault(error)}",
            hint="install the version that the model was trained with of "
            + (record.distribution if named else "the plugin that has it"),
        ) from None
    assert isinstance(made, Codec)
    return made


def _exports(point: EntryPoint, kind: type) -> bool:
    """Whether an entry point names a class under another path, e.g. that of its package."""
    package = kind.__module__.partition(".")[0]
    if point.module.partition(".")[0] != package and point.module not in sys.modules:
        return False  # another plugin's, which need not be imported for this
    try:
        return point.load() is kind
    except (Exception, SystemExit):
        return False  # broken; whoever names it hears of it
