"""The format `onnx`: a single file, or a bundle, proven equal to the checkpoint."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import PrivateAttr, Strict

from gptkit.errors import GptkitError, UsageError
from gptkit.onnx.export import build, page
from gptkit.onnx.export.bundle import foreign_files, is_bundle, write_bundle
from gptkit.onnx.graphs.source import ExportSource
from gptkit.onnx.proof.compare import (
    TOLERANCES,
    ort_errors_as_export_errors,
    prompts_for,
    raise_if_failed,
)
from gptkit.onnx.proof.prove import prove_generate
from gptkit.onnx.proof.prove_bundle import prove_loss
from gptkit.onnx.proof.seal import append_proof
from gptkit.onnx.runtime.metadata import Comparison, is_exported
from gptkit.plugin import Data, Format, TrainedModel

MAX_FILE_WEIGHTS = 1_500_000_000
"""Bytes of weights that a single file may hold; protobuf messages end at 2 GiB."""


class Onnx(Format):
    """ONNX models for other programs: one file, or a bundle of files in a folder.

    A path that ends in .onnx, in any case, becomes a single file, any other one a bundle.
    """

    contract = 1
    suffix: ClassVar[str] = ".onnx"

    dtype: Literal["float32", "float16", "int8", "int4"] = "float32"
    """Precision of the weights; int8 and int4 need the training data, to measure their loss."""
    device: Literal["cpu", "cuda"] = "cpu"
    """The device that a bundle is made for; a single file is for CPUs."""
    web: Annotated[Path, Strict(False)] | None = None
    """A folder for the single file and a page that runs it in a browser."""

    _comparisons: list[Comparison] = PrivateAttr(default_factory=list)

    @property
    def comparisons(self) -> list[Comparison]:
        """The proof that what was written is equal to the checkpoint."""
        return list(self._comparisons)

    def default_path(self) -> Path:
        """model.onnx, in the page's folder if there is one."""
        return (self.web or Path()) / super().default_path()

    def check(self, path: Path) -> None:
        """Refuse options that do not fit together, and a place with anything but an export."""
        if self.web and path != self.default_path():
            raise UsageError(
                "--web and --out are both given", hint="--web DIR writes DIR/model.onnx"
            )
        if is_single(path) and self.device != "cpu":
            raise UsageError(
                f"{path}: a single file is for CPUs",
                hint=f"--device {self.device} --out FOLDER writes a bundle",
            )
        _check_place(path)
        if self.web:
            page.check_page_folder(self.web)

    def write(self, model: TrainedModel, path: Path) -> None:
        """Write a file or a bundle and compare it with the model."""
        source = ExportSource.of(build.gpt(model), self.dtype, device=self.device)
        single = is_single(path)
        if single and source.weight_bytes > MAX_FILE_WEIGHTS:
            raise UsageError(
                f"{source.weight_bytes / 1e9:.1f} GB of weights are too large for a single file",
                hint=f"--out {path.stem} writes a bundle",
            )
        data = self._measured_data(model) if TOLERANCES[self.dtype].loss is not None else None
        write = _write_file if single else write_bundle
        self._comparisons[:] = write(model, source, data, path)
        if self.web:
            page.write_page(self.web)

    def _measured_data(self, model: TrainedModel) -> Data:
        """The data that the loss of quantised weights is measured on."""
        try:
            return model.load_data()
        except GptkitError as error:
            error.add_note(f"{self.dtype} needs the run's data, to measure the loss that it costs")
            raise


def is_single(path: Path) -> bool:
    """Whether an export to that path is a single file."""
    return path.suffix.lower() == ".onnx"


def _check_place(path: Path) -> None:
    """Raise a UsageError if the export would replace something that gptkit did not write."""
    if is_single(path):
        if path.is_dir():
            hint = "--out FILE.onnx, or a folder for a bundle"
            raise UsageError(f"{path}: is a folder", hint=hint)
        if path.exists() and not is_exported(path):
            raise UsageError(
                f"{path}: already exists, and gptkit did not write it",
                hint="choose another place: --out FILE.onnx",
            )
        return
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir() or not is_bundle(path):
        raise UsageError(
            f"{path}: already exists and is not a bundle", hint="--out FILE.onnx, or a new folder"
        )
    if others := foreign_files(path):
        raise UsageError(
            f"{path}: a new bundle would also delete {', '.join(others)}",
            hint="move these files elsewhere, or choose another --out",
        )


def _write_file(
    trained: TrainedModel, source: ExportSource, data: Data | None, target: Path
) -> list[Comparison]:
    """Write the graph `generate` with everything inside, and prove it."""
    model, dtype = build.gpt(trained), source.precision.name
    ir.save(build.build_model(trained, source, "generate"), target)
    starts = np.array(trained.codec.starts, dtype=np.int64)
    with ort_errors_as_export_errors(target.name):
        comparisons = list(prove_generate(target, model, starts, dtype, prompts_for(model, data)))
        if data is not None:
            step = target.with_name("step.onnx")
            ir.save(build.build_model(trained, source, "step"), step)
            comparisons.append(prove_loss(step, model, data, dtype))
    raise_if_failed(target.name, comparisons)
    append_proof(target, comparisons)
    return comparisons
