"""Samples as they are drawn, and what an evaluation measured."""

import json
from pathlib import Path
from typing import IO

from gptkit.errors import GptkitError, UsageError
from gptkit.run import Drawing
from gptkit.step_folder import State
from gptkit.trainer import Evaluation


def stream_samples(drawing: Drawing, file: IO[bytes], *, samples: int) -> None:
    """Write one sample as it is drawn, or several when they are complete.

    Raises:
        UsageError: the samples are pictures, which no terminal can take as bytes.
    """
    codec = drawing.codec
    if codec.suffix != ".txt":
        raise UsageError(f"samples are {codec.suffix} files", hint=f"--out sample{codec.suffix}")
    if samples > 1:
        file.write(codec.sheet(drawing.rows()) + b"\n")
        return
    file.write(codec.decode(drawing.prompt))
    for (token,) in drawing.stream:
        file.write(codec.decode([token]))
        file.flush()
    file.write(b"\n")


def write_samples(drawing: Drawing, path: Path) -> None:
    """Write samples into one file, complete or not at all.

    Raises:
        GptkitError: the file cannot be written.
    """
    rows = drawing.rows()
    contents = drawing.codec.sheet(rows) if len(rows) > 1 else drawing.codec.decode(rows[0])
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(contents)  # a pipe or a device must not be replaced by a file
            return
        temporary = path.resolve().with_name(f".{path.name}.tmp")  # behind a link, not over it
        temporary.write_bytes(contents)
        temporary.replace(path.resolve())
    except OSError as error:
        raise GptkitError(f"{path}: cannot be written: {error.strerror}") from error


def evaluation(result: Evaluation, state: State, *, as_json: bool) -> None:
    """Print what `gptkit eval` measured."""
    values = {
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_token": result.bits_per_token,
        "tokens": result.tokens,
        "step": state.step,
    }
    if as_json:
        print(json.dumps(values))
        return
    print(f"loss            {result.loss:.4f} nats per token")
    print(f"perplexity      {result.perplexity:.3f}")
    print(f"bits per token  {result.bits_per_token:.4f}")
    print(f"tokens          {result.tokens:,} (the whole validation split)")
    print(f"step            {state.step}")
