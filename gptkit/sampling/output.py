"""Samples in a file. Imports no torch."""

from pathlib import Path

from gptkit.codec import Codec
from gptkit.errors import UsageError
from gptkit.files import write_atomically, writing
from gptkit.sampling.samples import Samples


def check_file(path: Path, codec: Codec | None) -> None:
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


def write_samples(samples: Samples, codec: Codec | None, path: Path) -> bytes:
    """Draw samples to the end and write them to a file, atomically; returns its contents.

    Args:
        samples: that are being drawn.
        codec: gives the format; None writes token ids, a line for every sample.
        path: the file, a pipe or a device.

    Raises:
        RunError: it cannot be written.
    """
    contents = samples.contents(codec) if codec else samples.id_lines()
    with writing(path, hint="choose another file: --out FILE"):
        if path.exists() and not path.is_file():  # a pipe or a device must not be replaced
            path.write_bytes(contents)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, contents)
    return contents
