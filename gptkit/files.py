"""Files on disk, for the core and for plugins: safe reads, atomic writes, locks, digests."""

import errno
import hashlib
import json
import os
import shlex
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gptkit.errors import RunError, UsageError
from gptkit.staging import unused_name
from gptkit.terminal import LONE, REPLACEMENT, harmless

CHUNK = 1 << 20  # bytes read at a time
ROOM = "check that there is room, and that you may write there"
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def check_name(path: Path) -> None:
    """Raise a UsageError if a path is not UTF-8: safetensors and onnxruntime open no such file."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{path}: the path is not UTF-8", hint="rename it") from None


def open_file(path: Path, *, pipes: bool = False) -> BufferedReader:
    """Open a regular file for reading: never a pipe or a device, which may have no end.

    Args:
        path: of the file.
        pipes: take a pipe, too, such as `/dev/stdin`; one that nobody writes to is empty.

    Raises:
        OSError: it is missing, cannot be read, or is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except ValueError as error:  # a null character
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    mode = os.fstat(descriptor).st_mode
    if pipes and stat.S_ISFIFO(mode):
        os.set_blocking(descriptor, True)
    elif fault := _irregular(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, fault, str(path))
    return os.fdopen(descriptor, "rb")


def read_file(path: Path, *, limit: int, pipes: bool = False) -> bytes:
    """The contents of a regular file of at most `limit` bytes; if `pipes`, also of a pipe.

    Raises:
        OSError: it is missing, cannot be read, is no regular file, or is larger.
    """
    with open_file(path, pipes=pipes) as file:
        contents = file.read(limit + 1)
    if len(contents) > limit:
        raise OSError(errno.EFBIG, f"is larger than {limit:,} bytes", str(path))
    return contents


def read_json(path: Path, *, limit: int = 64 * CHUNK) -> Any:
    """The JSON value in a regular file of at most `limit` bytes.

    Raises:
        OSError: it cannot be read, as for `read_file`.
        ValueError: it is not JSON in UTF-8, or is nested too deeply.
    """
    try:
        return json.loads(read_file(path, limit=limit))
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def write_atomically(path: Path, contents: bytes) -> None:
    """Write a file atomically: a crash or a power cut leaves the old contents or the new ones.

    A symbolic link stays; the file that it points to is replaced.

    Raises:
        OSError: the folder is missing or not writable, the disk is full, the link leads to itself,
            or something is there that is no regular file: a device must not be replaced.
    """
    with suppress(FileNotFoundError):
        if fault := _irregular(path.stat().st_mode):
            raise OSError(errno.EINVAL, fault, str(path))
    target = Path(os.path.realpath(path))
    temporary = unused_name(target)
    try:
        with temporary.open("xb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically.

    Raises:
        RunError: the folder is not writable, or the disk is full.
    """
    with writing(path):
        write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


@contextmanager
def writing(path: Path, *, hint: str = ROOM) -> Iterator[None]:
    """Turn an OSError into a RunError: `path` cannot be written, with the reason."""
    try:
        yield
    except OSError as error:
        fault = error.strerror or error
        raise RunError(f"{path}: cannot be written: {fault}", hint=hint) from error


def quote(path: Path | str) -> str:
    """A path for a command that can be pasted into a shell: never an option, always one line."""
    text = str(path)
    if text.startswith("-"):
        text = f"./{text}"
    if harmless(text, keep="") == text:
        return shlex.quote(text)
    escaped = (
        chr(byte) if 31 < byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}"
        for byte in os.fsencode(LONE.sub(REPLACEMENT, text))
    )
    return f"$'{''.join(escaped)}'"


def make_folder(path: Path, *, exist_ok: bool = True) -> Callable[[], None]:
    """Make a folder and those around it; returns what removes the new ones that are empty.

    Raises:
        OSError: it cannot be made, or something is there that is no folder.
        FileExistsError: it exists already, and `exist_ok` is False.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]

    def remove() -> None:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()

    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except OSError:
        remove()
        raise
    return remove


@contextmanager
def lock(path: Path, *, busy: Exception | None = None, keep: bool = True) -> Iterator[None]:
    """Hold a lock file; the system releases it when the process dies.

    Args:
        path: the lock file, created if it is missing.
        busy: raised if another process holds the lock; None waits for that process.
        keep: whether the file stays when the lock is released.

    Raises:
        OSError: the file cannot be written.
    """
    held = FileLock(path, timeout=-1 if busy is None else 0)
    try:
        held.acquire()
    except Timeout:
        assert busy is not None
        raise busy from None
    try:
        yield
    finally:
        if not keep:
            path.unlink(missing_ok=True)
        held.release()


def digest(path: Path, size: int | None = None) -> str:
    """The sha256 of a file in hex.

    Args:
        path: the file, read in chunks.
        size: how many bytes to read from its beginning; None for all of them.

    Raises:
        OSError: the file cannot be read.
    """
    with open_file(path) as file:
        if size is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        hasher = hashlib.sha256()
        while size > 0 and (chunk := file.read(min(CHUNK, size))):
            hasher.update(chunk)
            size -= len(chunk)
    return hasher.hexdigest()


def _irregular(mode: int) -> str | None:
    """What is there instead of a regular file."""
    kind = KINDS.get(stat.S_IFMT(mode), "a device")
    return None if stat.S_ISREG(mode) else f"is {kind}, not a regular file"
