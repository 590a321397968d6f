"""Samples: text while it is drawn, images as files or on the terminal. Imports no torch."""

import shutil
import sys
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from gptkit.codec import Codec
from gptkit.errors import GptkitError, UsageError
from gptkit.files import write_atomically, writing
from gptkit.sampling.samples import Samples


def check_out(path: Path, codec: Codec | None) -> None:
    """Check, before samples are drawn, that they can be written to a file.

    Args:
        path: the file.
        codec: of the samples; None for token ids.

    Raises:
        UsageError: it is a folder, or has the ending of another kind of file.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder", hint="--out FILE")
    is_file = path.is_file() or not path.exists()  # a pipe or a device may have any name
    if codec and is_file and codec.suffix not in (".txt", path.suffix.lower()):
        raise UsageError(
            f"{path}: samples are {codec.suffix} files",
            hint=f"--out {path.with_suffix(codec.suffix)}",
        )


def stream(samples: Samples, codec: Codec, file: IO[bytes]) -> None:
    """Write one text while it is drawn, several when they are complete; show images.

    Raises:
        UsageError: `file` cannot show images.
        GptkitError: `file` cannot be written.
    """
    if codec.suffix != ".txt":
        if not _shows_images(file):
            raise UsageError(f"samples are {codec.suffix} files", hint=f"--out out{codec.suffix}")
        _show(samples.contents(codec), codec)
    elif len(samples.starts) > 1:
        _print(samples.contents(codec) + b"\n", file)
    else:
        _print(codec.decode(samples.starts[0]), file)
        for (token,) in samples.stream:
            _print(codec.decode([token]), file)
        _print(b"\n", file)


def write(samples: Samples, codec: Codec, path: Path) -> None:
    """Write samples into one file, atomically; show images on a terminal, too.

    Raises:
        GptkitError: the file cannot be written.
    """
    contents = samples.contents(codec)
    _write(contents, path)
    if _shows_images(sys.stdout):
        _show(contents, codec)


def print_ids(samples: Samples, path: Path | None) -> None:
    """Print the token ids of every sample on a line, or write them to a file."""
    lines = "".join(" ".join(map(str, row)) + "\n" for row in samples.token_ids()).encode()
    if path:
        _write(lines, path)
    else:
        _print(lines, sys.stdout.buffer)


def _print(contents: bytes, file: IO[bytes]) -> None:
    """Write at once. A closed pipe is fine; a full disk is an error."""
    try:
        file.write(contents)
        file.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise GptkitError(f"standard output: cannot be written: {error.strerror}") from error


def _write(contents: bytes, path: Path) -> None:
    with writing(path, hint="choose another file: --out FILE"):
        if path.exists() and not path.is_file():  # a pipe or a device must not be replaced
            path.write_bytes(contents)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, contents)


def _shows_images(file: IO[Any]) -> bool:
    """Whether a file is a terminal with 24-bit colours."""
    return file.isatty() and Console().color_system == "truecolor"


def _show(contents: bytes, codec: Codec) -> None:
    text = codec.preview(contents, width=shutil.get_terminal_size().columns)
    if text:
        print(text)
