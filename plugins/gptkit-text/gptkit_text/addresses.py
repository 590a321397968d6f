"""Files at addresses: copied from an HTTP server, or from anywhere by fsspec."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from gptkit.plugin import DataError, DownloadError, download, note, progress

CHUNK = 1 << 20  # bytes copied at a time
PAUSES = (1.0, 3.0, 10.0)
"""Seconds before each further try to copy by fsspec, whose file systems try again themselves."""

MOST_NAME = 100
"""Characters of a file's name, the last of which say what it holds."""

FINAL = {
    FileNotFoundError: "there is no such file",
    IsADirectoryError: "it is a folder",
    PermissionError: "it may not be read",
}
"""What a further try does not mend."""

Expect = Callable[[int], object]


class _BrokenOff(Exception):  # noqa: N818 - of a try, not of the copy
    """What broke a try off; a further one may succeed, unless it is `final`."""

    def __init__(self, fault: str, *, final: bool = False) -> None:
        super().__init__(fault)
        self.final = final


def is_http(address: str) -> bool:
    """Whether an address is of HTTP; the others are for fsspec."""
    return urlsplit(address).scheme in ("http", "https")


def name_of(address: str) -> str:
    """The name of the file at an address, as it may be used on this machine.

    In an address of fsspec, such as `zip://a.txt::https://host/b.zip`, that is the innermost file.
    """
    if is_http(address):
        path = urlsplit(address).path
    else:
        parts = (part for part in address.split("::") if "://" in part)
        first = urlsplit(next(parts, address))
        path = first.path or first.netloc
    name = unquote(path).rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]", "_", name).lstrip(".")[-MOST_NAME:] or "file"


def copy(address: str, target: Path, *, expect: Expect) -> None:
    """Copy the file at an address to `target`, which is complete afterwards.

    Args:
        address: with "://"; of HTTP, or of a file system that fsspec knows.
        target: a new file.
        expect: called with the size in bytes before anything of that size is written.

    Raises:
        DownloadError: it cannot be had.
        DataError: fsspec does not know the protocol, or it or what it needs is not installed.
        OSError: the target cannot be written.
    """
    if is_http(address):
        download(address, target, expect=expect)
        return
    for pause in (*PAUSES, None):
        try:
            _copy(*_file_system(address), target, expect)
            return
        except _BrokenOff as error:
            if pause is None or error.final:
                tries = "" if error.final else f" in {len(PAUSES) + 1} tries"
                raise DownloadError(
                    f"{address}: cannot be read{tries}: {error}",
                    hint="check the address, the network and what you may read there",
                ) from error
            note(f"{address}: {error}; trying again in {pause:g} s")
            time.sleep(pause)


def _file_system(address: str) -> tuple[Any, str]:
    """The file system of fsspec that an address belongs to, connected anew, and the path there."""
    try:
        import fsspec
    except ImportError:
        raise DataError(
            f"{address}: needs the package fsspec, which is not installed",
            hint='pip install fsspec, or "gptkit-text[remote]"',
        ) from None
    try:
        system, path = _asked(lambda: fsspec.core.url_to_fs(address, skip_instance_cache=True))
    except _BrokenOff as error:
        if isinstance(error.__cause__, ImportError | ValueError):  # no such protocol or package
            fault = f"{address}: {error.__cause__}"
            raise DataError(fault, hint="check the address in [dataset]") from error
        raise
    return system, path


def _copy(system: Any, path: str, target: Path, expect: Expect) -> None:
    size = _asked(lambda: system.size(path))
    if not size and _asked(lambda: system.isdir(path)):
        raise _BrokenOff(FINAL[IsADirectoryError], final=True)
    if not isinstance(size, int):
        raise _BrokenOff("nobody says how long the file is")
    expect(size)
    have = 0
    with target.open("wb") as file, progress(f"copying {target.name}", total=size) as advance:
        for chunk in _chunks(system, path):
            if have + len(chunk) > size:
                raise _BrokenOff(f"more than the {size:,} bytes came that it should have")
            file.write(chunk)
            have += len(chunk)
            advance(len(chunk))
    if have < size:
        raise _BrokenOff(f"{have:,} bytes came where {size:,} should")


def _chunks(system: Any, path: str) -> Iterator[bytes]:
    file = _asked(lambda: system.open(path, "rb"))
    try:
        while chunk := _asked(lambda: file.read(CHUNK)):
            yield chunk
    finally:
        with suppress(Exception):  # of any library, after what is known already
            file.close()


def _asked(question: Callable[[], Any]) -> Any:
    """What a file system answers; it may fail with exceptions of any library."""
    try:
        return question()
    except Exception as error:
        told = next((told for kind, told in FINAL.items() if isinstance(error, kind)), None)
        fault = told or f"{type(error).__name__}: {error}"
        raise _BrokenOff(fault, final=told is not None) from error
