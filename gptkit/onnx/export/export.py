"""`gptkit export`: a checkpoint to an `.onnx` file or a bundle, proven before it gets its name."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from safetensors import SafetensorError

from gptkit.errors import RunError, UsageError
from gptkit.files import lock, recover, staged, writing
from gptkit.onnx.export import build, page
from gptkit.onnx.export.bundle import foreign_files, is_bundle, write_bundle
from gptkit.onnx.graphs.source import ExportSource
from gptkit.onnx.graphs.weights import PRECISIONS
from gptkit.onnx.proof.compare import TOLERANCES, ort_errors_as_export_errors, raise_if_failed
from gptkit.onnx.proof.prove import prove_generate
from gptkit.onnx.proof.prove_bundle import prove_loss
from gptkit.onnx.proof.seal import append_proof
from gptkit.onnx.runtime.metadata import Comparison
from gptkit.plugin import Data
from gptkit.runs import run_folder
from gptkit.runs.loaded import LoadedModel, load_checkpoint, load_run

MAX_FILE_WEIGHTS = 1_500_000_000
"""Bytes of weights that a single file may hold; protobuf messages end at 2 GiB."""
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Exported:
    """What was written, and the proof that it is equal to the checkpoint."""

    path: Path
    comparisons: list[Comparison]


def export(
    path: Path | None,
    *,
    out: Path | None = None,
    web: Path | None = None,
    checkpoint: str = "last",
    weights: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
) -> Exported:
    """Export a run's checkpoint: a single file if `out` ends in .onnx, otherwise a bundle.

    Args:
        path: the run folder; None takes the newest one.
        out: the file or folder, model.onnx if None; an earlier file or bundle is replaced.
        web: a folder for model.onnx and a page that runs it.
        checkpoint: "last", "best" or a step's number.
        weights: the name of a further set of weights; None: the model's own.
        dtype: float32, float16, int8 or int4.
        device: what a bundle's decode.onnx is made for, "cpu" or "cuda".

    Raises:
        UsageError: an option is wrong, or the model is too large for a single file.
        ExportError: what was written is not equal to the checkpoint; it was deleted.
    """
    out = _check_options(out, web, dtype, device)
    run = run_folder.open_run(path).path
    loaded, data = _load(run, checkpoint, weights, dtype)
    source = ExportSource.of(loaded.model, dtype, device=device)
    single = out.suffix == ".onnx"
    if single and source.weight_bytes > MAX_FILE_WEIGHTS:
        raise UsageError(
            f"{source.weight_bytes / 1e9:.1f} GB of weights are too large for a single file",
            hint=f"gptkit export {run_folder.quote(run)} --dtype {dtype} "
            f"--out {run_folder.quote(out.with_suffix(''))}",
        )
    with _staged(out) as target:
        comparisons = (_write_file if single else write_bundle)(loaded, source, data, target)
    if web:
        page.write_page(web)
    return Exported(out, comparisons)


def _check_options(out: Path | None, web: Path | None, dtype: str, device: str) -> Path:
    """The place to write to, once nothing is wrong with the options."""
    _check_known("dtype", dtype, PRECISIONS)
    _check_known("device", device, DEVICES)
    if web and out:
        raise UsageError("--web and --out are both given", hint="--web DIR writes DIR/model.onnx")
    out = out or (web / "model.onnx" if web else Path("model.onnx"))
    if out.suffix == ".onnx" and device != "cpu":
        raise UsageError(
            f"{out}: a single file is for CPUs",
            hint=f"--device {device} --out FOLDER writes a bundle",
        )
    _check_target(out)
    if web:
        page.check_page_folder(web)
    return out


def _check_known(name: str, value: object, known: Collection[object]) -> None:
    if value not in known:
        raise UsageError(f"{name} should be one of {', '.join(map(str, known))}, got {value}")


def _check_target(out: Path) -> None:
    """Raise a UsageError if the export would replace something that gptkit did not write."""
    single = out.suffix == ".onnx"
    if single and out.is_dir():
        raise UsageError(f"{out}: is a folder", hint="--out FILE.onnx, or a folder for a bundle")
    if single or not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not is_bundle(out):
        raise UsageError(
            f"{out}: already exists and is not a bundle", hint="--out FILE.onnx, or a new folder"
        )
    if others := foreign_files(out):
        raise UsageError(
            f"{out}: a new bundle would also delete {', '.join(others)}",
            hint="move these files elsewhere, or choose another --out",
        )


def _load(
    run: Path, checkpoint: str, weights: str | None, dtype: str
) -> tuple[LoadedModel, Data | None]:
    """The checkpoint, and for quantised exports the data, whose loss shows what they cost."""
    if TOLERANCES[dtype].loss is None:
        return load_checkpoint(run, checkpoint=checkpoint, weights=weights, device="cpu"), None
    run_with_data = load_run(run, checkpoint=checkpoint, weights=weights, device="cpu")
    return run_with_data.model, run_with_data.data


def _write_file(
    loaded: LoadedModel, source: ExportSource, data: Data | None, target: Path
) -> list[Comparison]:
    """Write the graph `generate` with everything inside, and prove it."""
    model, dtype = loaded.model, source.precision.name
    ir.save(build.build_model(loaded, source, "generate"), target)
    starts = np.array(loaded.codec.starts, dtype=np.int64)
    with ort_errors_as_export_errors(target.name):
        comparisons = list(prove_generate(target, model, starts, dtype))
        if data is not None:
            step = target.with_name("step.onnx")
            ir.save(build.build_model(loaded, source, "step"), step)
            comparisons.append(prove_loss(step, model, data, dtype))
    raise_if_failed(target.name, comparisons)
    append_proof(target, comparisons)
    return comparisons


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A path to write to, which takes the name `out` at the end; see `gptkit.files.staged`.

    Raises:
        RunError: the place cannot be written, or another export is writing there.
    """
    busy = RunError(
        f"{out}: another export is writing there", hint="wait for it, or choose another --out"
    )
    made = [folder for folder in out.absolute().parents if not folder.exists()]
    try:
        with writing(out, hint="choose another place"):
            out.parent.mkdir(parents=True, exist_ok=True)
            with lock(out.with_name(f".{out.name}.lock"), busy=busy, keep=False):
                recover(out)
                with staged(out) as new:
                    yield new
    except SafetensorError as error:  # from a full disk, too
        raise RunError(f"{out}: cannot be written: {error}", hint="choose another place") from error
    finally:
        for folder in made:  # these stay only if something was written
            with suppress(OSError):
                folder.rmdir()
