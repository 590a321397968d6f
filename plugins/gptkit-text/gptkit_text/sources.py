"""Where documents come from: the option `path`, and the sources of a mixture."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    TypeAdapter,
    model_validator,
)

from gptkit.plugin import DataError, LocalPath, progress
from gptkit_text.addresses import is_http
from gptkit_text.decoding import Errors
from gptkit_text.documents import Reader
from gptkit_text.files import ENDINGS, common_place, expand, find
from gptkit_text.hub import HUB_NAME, fetch_dataset

LOCAL: TypeAdapter[Path] = TypeAdapter(LocalPath)


def is_remote(place: str) -> bool:
    """Whether a place is an address, not a path."""
    return "://" in place


def _as_text(place: Any) -> Any:
    return os.fspath(place) if isinstance(place, PathLike) else place


def _absolute(place: str) -> str:
    return place if is_remote(place) else str(LOCAL.validate_python(place))


Place = Annotated[str, BeforeValidator(_as_text), AfterValidator(_absolute)]
"""A path or an address, in which `{000..199}` stands for as many of them."""
Places = Place | Annotated[list[Place], Field(min_length=1)]


def _ending(ending: str) -> str:
    if not re.fullmatch(r"\.[^\s/\\]*[^\s/\\.]", ending):
        raise ValueError(f'should be an ending such as ".py", got "{ending}"')
    return ending.lower()


Endings = Annotated[list[Annotated[str, AfterValidator(_ending)]], Field(min_length=1)]
"""Endings of file names, such as ".md"; their case does not matter."""


class TextSource(BaseModel):
    """A source of a mixture: the table `[[dataset.sources]]`."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    path: Places | None = None
    """A file, a folder, or a list of them; `{000..199}` stands for as many numbers."""
    hf: str | None = Field(default=None, min_length=1)
    """A data set on the Hugging Face Hub, "owner/name" or "owner/name@revision", either with
    "/folder"; used instead of path."""
    weight: PositiveFloat = Field(default=1.0, allow_inf_nan=False)
    """How often this source is drawn from, beside the weights of the others."""
    name: str | None = Field(default=None, pattern="^[A-Za-z0-9_.-]+$")
    """Its name in the metrics; that of the file or folder if unset."""
    text_key: str | None = None
    """The key or the column of the text; that of the data set if unset."""
    endings: Endings | None = None
    """What a folder is searched for; the data set's endings if unset."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.path is None) == (self.hf is None):
            raise ValueError("should have either path or hf")
        return self

    @property
    def label(self) -> str:
        """The name, or what it is without one."""
        if self.hf:  # a dot in the name of a folder begins no ending
            place = Path(HUB_NAME.sub(r"\1/\3", self.hf)).name
        else:
            place = Path(places(self.path)[0]).stem
        return self.name or re.sub("[^A-Za-z0-9_.-]", "_", place)


@dataclass(frozen=True)
class Source:
    """A source that can be read."""

    name: str
    weight: float
    reader: Reader
    address: str | None = None
    """Where it is, if that is not on this machine; the reader has no files then."""

    @property
    def place(self) -> str:
        """Its file, the folder around all its files, or its address."""
        return self.address or str(common_place([file.path for file in self.reader.files]))


def places(path: Places | None) -> list[str]:
    """The single ones that a path option names."""
    return [path] if isinstance(path, str) else list(path or [])


def addresses_of(tables: Sequence[TextSource]) -> list[str]:
    """The addresses of the shards of a remote text; none if all is on this machine.

    Raises:
        DataError: some is here and some is not, it is a mixture, or one is of a folder.
    """
    named = [place for table in tables for place in places(table.path)]
    remote = [place for place in named if is_remote(place)]
    if remote and (len(tables) > 1 or len(remote) < len(named)):
        raise DataError(
            f"{remote[0]}: shards at addresses cannot be mixed with other texts",
            hint="give one list of addresses as path in [dataset], or download the files",
        )
    for place in remote:
        parts = urlsplit(place)
        is_host = is_http(place) and not (parts.path or parts.query)
        if place.endswith("/") or is_host:
            raise DataError(
                f"{place}: the address of a folder; its files must be named",
                hint=f'such as "{place.rstrip("/")}/part-{{00..09}}.jsonl"',
            )
    return [address for place in remote for address in expand(place)]


def open_source(
    table: TextSource, errors: Errors, *, text_key: str, endings: Endings | None = None
) -> Source:
    """Find the files of a source.

    Args:
        table: the source.
        errors: as for the reader of its files.
        text_key: of a source that has none of its own.
        endings: likewise.

    Raises:
        DataError: there are none.
        DownloadError: they cannot be downloaded.
    """
    paths: Sequence[str | Path] = [p for place in places(table.path) for p in expand(place)]
    wanted = table.endings or endings
    if table.hf:
        paths = fetch_dataset(table.hf, wanted or ENDINGS)
    files = find(paths, text_key=table.text_key or text_key, endings=wanted)
    return Source(table.label, table.weight, Reader(files, errors=errors))


def texts(sources: Sequence[Source]) -> Iterator[str]:
    """All documents, or pieces of them, to learn a tokenizer from."""
    for source in sources:
        reader = source.reader
        with progress(f"reading {Path(source.place).name}", total=reader.total) as advance:
            yield from (part.text for part in reader.parts(advance))
