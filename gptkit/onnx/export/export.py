"""Export a checkpoint to an `.onnx` file or a bundle, from Python."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptkit.onnx.export.format import Onnx
from gptkit.onnx.runtime.metadata import Comparison
from gptkit.recipe import formats
from gptkit.runs import export as writing


@dataclass(frozen=True)
class Exported:
    """What was written, and the proof that it is equal to the checkpoint."""

    path: Path
    comparisons: list[Comparison]


def export(
    path: Path | None,
    *,
    out: Path | None = None,
    checkpoint: str | int = "last",
    weights: str | None = None,
    **options: Any,
) -> Exported:
    """Export a run's checkpoint: a single file if `out` ends in .onnx, otherwise a bundle.

    Args:
        path: the run folder; None takes the newest one.
        out: the file or folder, model.onnx if None; an earlier file or bundle is replaced.
        checkpoint: "last", "best" or a step's number.
        weights: the name of a further set of weights; None: the model's own.
        options: of `Onnx`: dtype, device and web.

    Raises:
        UsageError: an option is wrong, or the model is too large for a single file.
        ExportError: what was written is not equal to the checkpoint; it was deleted.
    """
    onnx = formats.make("onnx", options)
    assert isinstance(onnx, Onnx)
    written = writing.export(path, onnx, out=out, checkpoint=checkpoint, weights=weights)
    return Exported(written, onnx.comparisons)
