"""Samples as they are drawn: text as it comes, pictures as files or on the terminal. No torch."""

import shutil
import sys
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from gptkit.codec import Codec
from gptkit.drawing import Drawing
from gptkit.errors import GptkitError, UsageError
from gptkit.folder import write_bytes


def stream(drawing: Drawing, codec: Codec, file: IO[bytes]) -> None:
    """Write one text as it is drawn, or several when they are complete; show pictures.

    Raises:
        UsageError: pictures cannot be shown where `file` leads.
    """
    if codec.suffix != ".txt":
        if not _shows_pictures(file):
            raise UsageError(f"samples are {codec.suffix} files", hint=f"--out out{codec.suffix}")
        _show(drawing.contents(codec), codec)
    elif len(drawing.starts) > 1:
        file.write(drawing.contents(codec) + b"\n")
    else:
        file.write(codec.decode(drawing.starts[0]))
        for (token,) in drawing.stream:
            file.write(codec.decode([token]))
            file.flush()
        file.write(b"\n")


def write(drawing: Drawing, codec: Codec, path: Path) -> None:
    """Write samples into one file, complete or not at all; pictures show on a terminal, too.

    Raises:
        GptkitError: the file cannot be written.
    """
    contents = drawing.contents(codec)
    _write(contents, path)
    if _shows_pictures(sys.stdout):
        _show(contents, codec)


def ids(drawing: Drawing, path: Path | None) -> None:
    """Print the token ids of every sample on a line, or write them to a file."""
    lines = "".join(" ".join(map(str, row)) + "\n" for row in drawing.rows())
    if path:
        _write(lines.encode(), path)
    else:
        print(lines, end="")


def _write(contents: bytes, path: Path) -> None:
    if path.exists() and not path.is_file():  # a pipe or a device is not replaced by a file
        try:
            path.write_bytes(contents)
        except OSError as error:
            raise GptkitError(f"{path}: cannot be written: {error.strerror}") from error
        return
    write_bytes(path, contents)


def _shows_pictures(file: IO[Any]) -> bool:
    """Whether a file is a terminal that knows 24-bit colours, and is allowed to use them."""
    return file.isatty() and Console().color_system == "truecolor"


def _show(contents: bytes, codec: Codec) -> None:
    picture = codec.preview(contents, width=shutil.get_terminal_size().columns)
    if picture:
        print(picture)
