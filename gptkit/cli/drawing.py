"""What `gptkit sample` does with its options: it reads prompts, draws, writes or shows."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import typer

from gptkit.codec import Codec, ImageCodec, TextCodec
from gptkit.data.progress import progress
from gptkit.errors import UsageError
from gptkit.sampling import output
from gptkit.sampling.model import Model
from gptkit.sampling.prompts import read_prompts
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.samples import SampleRequest, Samples
from gptkit.show import samples

COUNTED_EVERY = 32
"""Steps between two counts of the samples that are complete."""


def standard_input(model: Model) -> str:
    """The prompt on standard input, exactly as it is, also with a newline at its end.

    Raises:
        UsageError: it is not text in UTF-8, or the model's prompts are no text.
    """
    if not isinstance(model.codec, TextCodec):
        raise UsageError(
            f"--prompt -: prompts of this model are no text, its samples are {model.codec.suffix} "
            "files",
            hint=f"--prompt FILE{model.codec.suffix}",
        )
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8: {error}", hint="--prompt TEXT") from error


def check_prompts(prompts: Path, out: Path | None, *, lone: bool) -> None:
    """Raise a UsageError if `--prompts` is given options that do not go with it.

    Args:
        prompts: the file.
        out: where the samples are to go.
        lone: whether --prompt or --samples is given, which are for one prompt.
    """
    json = prompts.suffix.lower() == ".jsonl"
    missing = [] if out else [f"add --out FILE{'.jsonl' if json else ''}"]
    if lone or missing:
        without = ["leave --prompt and --samples out"] if lone else []
        raise UsageError(
            "--prompts writes a sample for each of its lines to a file",
            hint=", and ".join(missing + without),
        )
    for option, path in (("--prompts", prompts), ("--out", out)):
        if str(path) == "-":
            raise UsageError(f"{option} -: --prompts goes from a file to a file", hint="name files")
    if out and out.suffix and json != (out.suffix.lower() == ".jsonl"):
        kind = "JSON objects" if json else "not JSON objects"
        raise UsageError(
            f"{out}: the samples of {prompts} are {kind}",
            hint=f"--out {out.with_suffix('.jsonl' if json else '.txt')}",
        )


def show(drawn: Samples, codec: Codec | None) -> None:
    """Print samples while they are drawn; token ids if there is no codec."""
    if codec:
        samples.stream(drawn, codec, sys.stdout.buffer)
    else:
        samples.print_ids(drawn)


def write(
    model: Model,
    request: SampleRequest,
    sampling: SamplingOptions,
    codec: Codec | None,
    out: Path,
) -> None:
    """Draw samples into files; see `output.sample_files`."""
    files = output.sample_files(out, codec, request.samples)
    _write(model.draw(request, sampling), codec, files)


def write_each(
    model: Model,
    prompts: Path,
    request: SampleRequest,
    sampling: SamplingOptions,
    codec: Codec | None,
    out: Path,
) -> None:
    """Draw a sample for each line of a file of prompts into files.

    Raises:
        UsageError: the file of prompts is wrong, or the samples do not fit into the output.
    """
    read = read_prompts(prompts, request, seed=sampling.seed)
    if read.rows is not None and not (codec is None or isinstance(codec, TextCodec)):
        raise UsageError(
            f"{prompts}: samples of this model are {codec.suffix} files, which JSON cannot hold",
            hint="write a prompt in each line of a .txt file, or take --ids",
        )
    files = output.sample_files(out, codec, len(read.requests))
    drawn = read.draw(model, sampling)
    with progress(f"drawing {prompts}", total=len(drawn.samples), unit="samples") as advance:
        _write(replace(drawn, steps=_counted(drawn, advance)), codec, files)


def _counted(drawn: Samples, advance: Callable[[int], None]) -> Iterator[None]:
    """The steps; tells now and then how many more samples are complete."""
    complete = 0
    for i, _ in enumerate(drawn.steps):
        yield
        if i % COUNTED_EVERY == 0:
            ended = sum(sample.ended for sample in drawn.samples)
            advance(ended - complete)
            complete = ended


def _write(drawn: Samples, codec: Codec | None, files: list[Path]) -> None:
    contents = output.write_samples(drawn, codec, files)
    if len(files) > 1:
        typer.echo(f"written: {files[0]} to {files[-1]}", err=True)
    if isinstance(codec, ImageCodec):
        samples.print_image(contents[0], codec)
