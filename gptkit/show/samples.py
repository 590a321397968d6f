"""Samples on standard output: text while it is drawn, images on a terminal. Imports no torch."""

import os
import shutil
import sys
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from gptkit.codec import Codec, ImageCodec, TextCodec
from gptkit.errors import GptkitError, UsageError
from gptkit.sampling.samples import Samples


def stream(samples: Samples, codec: Codec, file: IO[bytes]) -> None:
    """Write a text while it is drawn, then those that were drawn with it; show images.

    Raises:
        UsageError: `file` cannot show samples of this kind.
        GptkitError: `file` cannot be written.
    """
    match codec:
        case TextCodec():
            for piece in samples.pieces(codec):
                _print(piece.encode(), file)
            _print(b"\n", file)
        case ImageCodec() if _shows_images(file):
            _show(samples.contents(codec)[0], codec)
        case _:
            raise UsageError(f"samples are {codec.suffix} files", hint=f"--out out{codec.suffix}")


def print_image(contents: bytes, codec: ImageCodec) -> None:
    """Show the contents of an image file, if standard output is a terminal that can."""
    if _shows_images(sys.stdout):
        _show(contents, codec)


def print_ids(samples: Samples) -> None:
    """Print the token ids of every sample on a line."""
    _print(samples.id_lines(), sys.stdout.buffer)


def _print(contents: bytes, file: IO[bytes]) -> None:
    """Write at once. A closed pipe is fine; a full disk is an error."""
    try:
        file.write(contents)
        file.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard(file)
        raise GptkitError(f"standard output: cannot be written: {error.strerror}") from error


def _discard(file: IO[bytes]) -> None:
    """Let what is still buffered go nowhere; else Python tries again at its end, and exits 120."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), file.fileno())


def _shows_images(file: IO[Any]) -> bool:
    """Whether a file is a terminal with 24-bit colours."""
    return file.isatty() and Console().color_system == "truecolor"


def _show(contents: bytes, codec: ImageCodec) -> None:
    text = codec.preview(contents, width=shutil.get_terminal_size().columns)
    if text:
        print(text)
