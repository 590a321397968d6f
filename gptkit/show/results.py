"""Samples as they are drawn, and what an evaluation measured."""

import json
import shutil
import sys
from pathlib import Path
from typing import IO

from gptkit.errors import GptkitError, UsageError
from gptkit.trained import Drawing, Trained
from gptkit.trainer import Evaluation


def stream_samples(drawing: Drawing, file: IO[bytes]) -> None:
    """Write one text as it is drawn, or several when they are complete; show pictures.

    Raises:
        UsageError: pictures cannot be shown where `file` leads.
    """
    codec = drawing.codec
    if codec.suffix != ".txt":
        if not file.isatty():
            raise UsageError(f"samples are {codec.suffix} files", hint=f"--out out{codec.suffix}")
        _show(drawing, drawing.contents())
    elif len(drawing.starts) > 1:
        file.write(drawing.contents() + b"\n")
    else:
        file.write(codec.decode(drawing.starts[0]))
        for (token,) in drawing.stream:
            file.write(codec.decode([token]))
            file.flush()
        file.write(b"\n")


def write_samples(drawing: Drawing, path: Path) -> None:
    """Write samples into one file, complete or not at all; pictures show on a terminal, too.

    Raises:
        GptkitError: the file cannot be written.
    """
    contents = drawing.contents()
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(contents)  # a pipe or a device must not be replaced by a file
            return
        temporary = path.resolve().with_name(f".{path.name}.tmp")  # behind a link, not over it
        temporary.write_bytes(contents)
        temporary.replace(path.resolve())
    except OSError as error:
        raise GptkitError(f"{path}: cannot be written: {error.strerror}") from error
    if sys.stdout.isatty():
        _show(drawing, contents)


def evaluation(result: Evaluation, trained: Trained, *, as_json: bool) -> None:
    """Print what `gptkit eval` measured."""
    values = {
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_token": result.bits_per_token,
        "tokens": result.tokens,
        "step": trained.state.step,
    }
    if trained.codec.lossless:
        values["bits_per_dim"] = result.bits_per_token
    if as_json:
        print(json.dumps(values))
        return
    print(f"loss            {result.loss:.4f} nats per token")
    print(f"perplexity      {result.perplexity:.3f}")
    print(f"bits per token  {result.bits_per_token:.4f}")
    if trained.codec.lossless:
        print(f"bits per dim    {result.bits_per_token:.4f}")
    elif trained.codec.lossless is False:
        print("bits per dim    lossy palette: not comparable with bits/dim")
    print(f"tokens          {result.tokens:,} (the whole validation split)")
    print(f"step            {trained.state.step}")


def _show(drawing: Drawing, contents: bytes) -> None:
    picture = drawing.codec.preview(contents, width=shutil.get_terminal_size().columns)
    if picture:
        print(picture)
