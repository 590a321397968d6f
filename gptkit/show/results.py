"""Samples as they are drawn, and what an evaluation measured."""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from gptkit.errors import GptkitError, UsageError
from gptkit.folder import RunFolder, write_bytes, write_json
from gptkit.measure import Probe
from gptkit.show.tables import print_rows
from gptkit.trained import Drawing, Trained
from gptkit.trainer import Evaluation


def stream_samples(drawing: Drawing, file: IO[bytes]) -> None:
    """Write one text as it is drawn, or several when they are complete; show pictures.

    Raises:
        UsageError: pictures cannot be shown where `file` leads.
    """
    codec = drawing.codec
    if codec.suffix != ".txt":
        if not _shows_pictures(file):
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
    if path.exists() and not path.is_file():  # a pipe or a device is not replaced by a file
        try:
            path.write_bytes(contents)
        except OSError as error:
            raise GptkitError(f"{path}: cannot be written: {error.strerror}") from error
        return
    write_bytes(path, contents)
    if _shows_pictures(sys.stdout):
        _show(drawing, contents)


def evaluation(
    result: Evaluation, trained: Trained, *, accuracy: float | None, as_json: bool
) -> None:
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
    if accuracy is not None:
        values["accuracy"] = accuracy
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
    if accuracy is not None:
        print(f"accuracy        {accuracy:.4f} by the highest p(x | class)")
    print(f"step            {trained.state.step}")


def probe(result: Probe, run: RunFolder, *, as_json: bool) -> None:
    """Print accuracy by layer beside the baselines; keep it as probe.json and probe.png."""
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        _print_probe(result)
    write_json(run.path / "probe.json", result.to_json())
    plotted = _plot_probe(result, run.path / "probe.png")
    if not as_json:
        print(plotted)


def _print_probe(result: Probe) -> None:
    rows: list[dict[str, object]] = [
        {"features": f"after block {i}", "accuracy": a} for i, a in enumerate(result.layers)
    ]
    rows[0]["features"] = "embedding"
    rows.append({"features": "raw data", "accuracy": result.raw})
    rows.append({"features": "chance", "accuracy": result.chance})
    print_rows(rows, ("features", "accuracy"), as_json=False)
    print(f"{result.train_items:,} items to fit, {result.val_items:,} to test, step {result.step}")


def _plot_probe(result: Probe, path: Path) -> str:
    """Draw the curve, where matplotlib is installed; say where it is."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "pip install gptkit[plots] to have the curve drawn"
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(len(result.layers)), result.layers, marker="o", label="features")
    if result.raw is not None:
        axes.axhline(result.raw, linestyle="--", color="gray", label="raw data")
    axes.axhline(result.chance, linestyle=":", color="gray", label="chance")
    axes.set(xlabel="block", ylabel="accuracy", title="Linear probe by layer")
    axes.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120)
    write_bytes(path, drawn.getvalue())
    return str(path)


def _shows_pictures(file: IO[Any]) -> bool:
    """Whether a file is a terminal that knows 24-bit colours, and is allowed to use them."""
    return file.isatty() and Console().color_system == "truecolor"


def _show(drawing: Drawing, contents: bytes) -> None:
    picture = drawing.codec.preview(contents, width=shutil.get_terminal_size().columns)
    if picture:
        print(picture)
