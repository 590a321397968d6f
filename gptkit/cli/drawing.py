"""What `gptkit sample` does with its options: it reads prompts, draws, writes or shows."""

import os
import stat
import sys
import textwrap
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from gptkit.codec import Codec, ImageCodec, TextCodec
from gptkit.data.progress import progress
from gptkit.errors import UsageError
from gptkit.sampling import output
from gptkit.sampling.model import Model
from gptkit.sampling.prompts import read_prompts
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.samples import SampleRequest, Samples
from gptkit.show import samples
from gptkit.terminal import say

COUNTED = 64
"""With more samples than these, not every step counts what is drawn of each of them."""
NAMED = 200
"""Characters for the names of classes."""


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
    except OSError as error:  # its terminal is closed, for example
        raise UsageError(f"standard input cannot be read: {error.strerror}") from error
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


def show(drawn: Samples, codec: Codec | None, *, engine: str | None = None) -> None:
    """Print samples while they are drawn; token ids if there is no codec."""
    _say_engine(engine)
    # What is shown while it is drawn needs no bar, also where another program shows it.
    streams = isinstance(codec, TextCodec) and not _is_file(sys.stdout)
    with _drawing(drawn, bar=not streams) as drawn:
        if codec:
            samples.stream(drawn, codec)
        else:
            samples.print_ids(drawn)


def write(
    model: Model,
    request: SampleRequest,
    sampling: SamplingOptions,
    codec: Codec | None,
    out: Path,
    *,
    engine: str | None = None,
) -> None:
    """Draw samples into files; see `output.sample_files`."""
    files = output.sample_files(out, codec, request.samples)
    drawn = model.draw(request, sampling)
    _say_engine(engine)
    in_turn = "" if request.needs_codec else _classes(codec, request.samples)
    _write(drawn, codec, files, remark=in_turn)


def write_each(
    model: Model,
    prompts: Path,
    request: SampleRequest,
    sampling: SamplingOptions,
    codec: Codec | None,
    out: Path,
    *,
    engine: str | None = None,
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
    _say_engine(engine)
    _write(drawn, codec, files)


@contextmanager
def _drawing(drawn: Samples, *, bar: bool = True) -> Iterator[Samples]:
    """The samples, with a bar of the tokens drawn.

    Ctrl-C ends the drawing; it is raised again at the end, when what was drawn is written.
    """
    stopped: list[KeyboardInterrupt] = []
    total = sum(sample.count or 0 for sample in drawn.samples)

    def steps() -> Generator[None, None, None]:
        shown = progress("drawing", total=total, unit="tokens") if bar else nullcontext(_nothing)
        try:
            with shown as advance:
                yield from _counted(drawn, advance)
        except KeyboardInterrupt as stop:
            if not any(sample.size for sample in drawn.samples):
                raise
            stopped.append(stop)

    with closing(steps()) as counted:
        yield replace(drawn, steps=counted)
    for stop in stopped:
        raise stop


def _counted(drawn: Samples, advance: Callable[[int], None]) -> Iterator[None]:
    """The steps; tells how many tokens they draw, also those that a sample with a stop saves."""
    counted, every = 0, 1 + len(drawn.samples) // COUNTED
    for i, _ in enumerate(drawn.steps):
        yield
        if i % every == 0:
            done = sum((each.ended and each.count) or each.size for each in drawn.samples)
            advance(done - counted)
            counted = done


def _say_engine(engine: str | None) -> None:
    """Say what draws, and why; None if it was asked for."""
    if engine:
        say(f"running on {engine}")


def _nothing(count: int) -> None:
    """Show no progress."""


def _write(drawn: Samples, codec: Codec | None, files: list[Path], *, remark: str = "") -> None:
    with _drawing(drawn) as drawn:
        contents = output.write_samples(drawn, codec, files)
        names = f"{files[0]} to {files[-1]}" if len(files) > 1 else files[0]
        say(f"written: {names}{remark}")
        if isinstance(codec, ImageCodec):
            samples.print_image(contents[0], codec)


def _classes(codec: Codec | None, count: int) -> str:
    """The classes of images that are drawn without a prompt, in their order."""
    if not isinstance(codec, ImageCodec) or len(codec.classes) < 2:
        return ""
    names = textwrap.shorten(", ".join(codec.classes[:count]), NAMED, placeholder=" ...")
    return f" (the classes in turn: {names})"


def _is_file(stream: IO[str]) -> bool:
    """Whether a stream writes to a regular file, which nobody watches."""
    with suppress(OSError, ValueError):  # the stream may be no file of the system, or closed
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    return False
