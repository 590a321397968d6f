"""Samples in files. Imports no torch."""

from pathlib import Path

from gptkit.codec import Codec, ImageCodec, TextCodec
from gptkit.errors import UsageError
from gptkit.files import write_atomically, writing
from gptkit.sampling.samples import Samples

OTHER_PLACE = "choose another file: --out FILE"


def sample_files(path: Path, codec: Codec | None, samples: int) -> list[Path]:
    """Check, before samples are drawn, that they can be written; the files that will hold them.

    Token ids, texts and images share one file. Of other formats there is a file for every sample,
    with a number in its name: three samples to w.svg are w-1.svg, w-2.svg and w-3.svg.

    Args:
        path: the file that was asked for.
        codec: of the samples; None for token ids.
        samples: how many there are.

    Raises:
        UsageError: it is a folder, or has the ending of another kind of file, or is not a file
            where several are needed.
    """
    paths = [path]
    if samples > 1 and not (codec is None or isinstance(codec, TextCodec | ImageCodec)):
        paths = [path.with_stem(f"{path.stem}-{i + 1}") for i in range(samples)]
    for each in {path, *paths}:
        if each.is_dir():
            raise UsageError(f"{each}: is a folder", hint="--out FILE")
    if path.exists() and not path.is_file():  # a pipe or a device may have any name
        if codec and len(paths) > 1:
            raise UsageError(
                f"{path}: {samples} samples are {samples} {codec.suffix} files",
                hint=f"--samples 1, or --out out{codec.suffix}",
            )
    elif codec and not isinstance(codec, TextCodec) and codec.suffix != path.suffix.lower():
        raise UsageError(
            f"{path}: samples are {codec.suffix} files",
            hint=f"--out {path.with_suffix(codec.suffix)}",
        )
    return paths


def write_samples(samples: Samples, codec: Codec | None, paths: list[Path]) -> list[bytes]:
    """Draw samples to the end and write them, each file atomically; returns the files' contents.

    Args:
        samples: that are being drawn.
        codec: gives the format; None writes token ids, a line for every sample.
        paths: from `sample_files`.

    Raises:
        RunError: one cannot be written.
    """
    contents = samples.contents(codec) if codec else [samples.id_lines()]
    if isinstance(codec, TextCodec):
        contents = [text + b"\n" for text in contents]  # as on standard output
    for path, data in zip(paths, contents, strict=True):
        with writing(path, hint=OTHER_PLACE):
            if path.exists() and not path.is_file():  # a pipe or a device must not be replaced
                path.write_bytes(data)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, data)
    return contents
