"""Samples on standard output: text while it is drawn, images on a terminal. Imports no torch."""

import shutil
import sys
from collections.abc import Iterable

from rich.console import Console

from gptkit.codec import Codec, ImageCodec, TextCodec
from gptkit.errors import UsageError
from gptkit.sampling.samples import Samples
from gptkit.terminal import harmless_pieces


def stream(samples: Samples, codec: Codec) -> None:
    """Print a text while it is drawn, then those that were drawn with it; show images.

    Raises:
        UsageError: standard output cannot show samples of this kind.
    """
    match codec:
        case TextCodec():
            _print(samples.pieces(codec))
            _print("\n")
        case ImageCodec() if _shows_images():
            _show(samples.contents(codec)[0], codec)
        case _:
            raise UsageError(f"samples are {codec.suffix} files", hint=f"--out out{codec.suffix}")


def print_image(contents: bytes, codec: ImageCodec) -> None:
    """Show the contents of an image file, if standard output is a terminal that can."""
    if _shows_images():
        _show(contents, codec)


def print_ids(samples: Samples) -> None:
    """Print the token ids of every sample on a line."""
    _print([samples.id_lines().decode()])


def _print(pieces: Iterable[str]) -> None:
    """Print each piece at once: harmless on a terminal, elsewhere in UTF-8 byte for byte."""
    if sys.stdout.isatty():
        for piece in harmless_pieces(pieces):
            sys.stdout.write(piece)
            sys.stdout.flush()
        return
    sys.stdout.flush()
    for piece in pieces:
        sys.stdout.buffer.write(piece.encode())
        sys.stdout.buffer.flush()


def _shows_images() -> bool:
    """Whether standard output is a terminal with 24-bit colours."""
    return sys.stdout.isatty() and Console().color_system == "truecolor"


def _show(contents: bytes, codec: ImageCodec) -> None:
    text = codec.preview(contents, width=shutil.get_terminal_size().columns)
    if text:
        print(text)
