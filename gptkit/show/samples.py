"""Samples as they are drawn: text as it comes, pictures as files or on the terminal. No torch."""

import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from gptkit.codec import Codec
from gptkit.errors import GptkitError, UsageError
from gptkit.runs.run_folder import write_bytes
from gptkit.sampling.samples import Samples


def check_out(path: Path, codec: Codec | None) -> None:
    """Refuse a file that samples cannot go to, before they are drawn.

    Args:
        path: the file.
        codec: of the samples; None for token ids.

    Raises:
        UsageError: it is a folder, or its name is that of another kind of file.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder", hint="--out FILE")
    named = path.is_file() or not path.exists()  # a pipe or a device has any name
    if codec and named and codec.suffix not in (".txt", path.suffix.lower()):
        raise UsageError(
            f"{path}: samples are {codec.suffix} files",
            hint=f"--out {path.with_suffix(codec.suffix)}",
        )


def stream(drawing: Samples, codec: Codec, file: IO[bytes]) -> None:
    """Write one text as it is drawn, or several when they are complete; show pictures.

    Raises:
        UsageError: pictures cannot be shown where `file` leads.
        GptkitError: nothing can be written there.
    """
    if codec.suffix != ".txt":
        if not _shows_pictures(file):
            raise UsageError(f"samples are {codec.suffix} files", hint=f"--out out{codec.suffix}")
        _show(drawing.contents(codec), codec)
    elif len(drawing.starts) > 1:
        _print(drawing.contents(codec) + b"\n", file)
    else:
        _print(codec.decode(drawing.starts[0]), file)
        for (token,) in drawing.stream:
            _print(codec.decode([token]), file)
        _print(b"\n", file)


def write(drawing: Samples, codec: Codec, path: Path) -> None:
    """Write samples into one file, complete or not at all; pictures show on a terminal, too.

    Raises:
        GptkitError: the file cannot be written.
    """
    contents = drawing.contents(codec)
    _write(contents, path)
    if _shows_pictures(sys.stdout):
        _show(contents, codec)


def ids(drawing: Samples, path: Path | None) -> None:
    """Print the token ids of every sample on a line, or write them to a file."""
    lines = "".join(" ".join(map(str, row)) + "\n" for row in drawing.rows()).encode()
    if path:
        _write(lines, path)
    else:
        _print(lines, sys.stdout.buffer)


def _print(contents: bytes, file: IO[bytes]) -> None:
    """Write at once; whoever reads may leave (a broken pipe), but a disk may not be full."""
    try:
        file.write(contents)
        file.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise GptkitError(f"standard output: cannot be written: {error.strerror}") from error


def _write(contents: bytes, path: Path) -> None:
    if path.exists() and not path.is_file():  # a pipe or a device is not replaced by a file
        try:
            path.write_bytes(contents)
        except OSError as error:
            raise GptkitError(f"{path}: cannot be written: {error.strerror}") from error
        return
    with suppress(OSError):  # then write_bytes says what is wrong
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, contents)


def _shows_pictures(file: IO[Any]) -> bool:
    """Whether a file is a terminal that knows 24-bit colours, and is allowed to use them."""
    return file.isatty() and Console().color_system == "truecolor"


def _show(contents: bytes, codec: Codec) -> None:
    picture = codec.preview(contents, width=shutil.get_terminal_size().columns)
    if picture:
        print(picture)
