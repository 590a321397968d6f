"""From a checkpoint to an `.onnx` file or a kit: written aside, proven, then given its name."""

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from gptkit.errors import RunError, UsageError
from gptkit.onnx.export import bundle as kit
from gptkit.onnx.export import page
from gptkit.onnx.export.blueprint import Blueprint
from gptkit.onnx.graphs.weights import PRECISIONS
from gptkit.onnx.proof.compare import TOLERANCES, ort_errors_as_export_errors, raise_if_failed
from gptkit.onnx.proof.prove import prove_generate
from gptkit.onnx.proof.prove_bundle import prove_loss
from gptkit.onnx.proof.seal import append_proof
from gptkit.onnx.runtime.metadata import Check
from gptkit.plugin import Data
from gptkit.runs import loaded, run_folder
from gptkit.runs.loaded import LoadedModel

LARGEST_FILE = 1_500_000_000
"""Bytes of weights that go into a single file; protobuf ends at 2 GiB."""
OPSETS = (21, 23)
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Exported:
    """What was written, and the proof that it is equal to the checkpoint."""

    path: Path
    checks: list[Check]


def export(
    path: Path | None,
    *,
    onnx: bool = True,
    out: Path | None = None,
    web: Path | None = None,
    which: str = "last",
    dtype: str = "float32",
    opset: int = 21,
    device: str = "cpu",
) -> Exported:
    """Export a run's checkpoint: a single file if `out` ends in .onnx, else a kit.

    Args:
        path: the run folder; None takes the newest one.
        onnx: the format; there is no other.
        out: the file or folder, model.onnx if None; an earlier file or kit is replaced.
        web: a folder that gets model.onnx and a page that runs it.
        which: "last", "best" or a step's number.
        dtype: float32, float16, int8 or int4.
        opset: 21, which onnxruntime 1.19 reads, or 23.
        device: what a kit's decode.onnx is made for, "cpu" or "cuda".

    Raises:
        UsageError: an option is wrong, or the model is too large for a single file.
        ExportError: what was written is not equal to the checkpoint; nothing stays behind.
    """
    _check_known("dtype", dtype, PRECISIONS)
    _check_known("opset", opset, OPSETS)
    _check_known("device", device, DEVICES)
    if not onnx:
        raise UsageError("which format?", hint="gptkit export --onnx")
    if web and out:
        raise UsageError("--web has a place for the model: leave --out out")
    out = out or (web / "model.onnx" if web else Path("model.onnx"))
    single = out.suffix == ".onnx"
    if single and device != "cpu":
        raise UsageError(
            f"{out}: a single file is for CPUs", hint=f"--device {device} --out FOLDER writes a kit"
        )
    _check_target(out, single=single)
    if web:
        page.check(web)
    run = run_folder.open_run(path).path
    opened, data = _open(run, which, dtype)
    blueprint = Blueprint(opened, dtype, opset, device)
    if single and blueprint.weight_bytes > LARGEST_FILE:
        raise UsageError(
            f"{blueprint.weight_bytes / 1e9:.1f} GB of weights do not fit into a single file",
            hint=f"gptkit export {run_folder.quote(run)} --onnx --dtype {dtype} "
            f"--out {run_folder.quote(out.with_suffix(''))}",
        )
    with _staged(out) as target:
        checks = (_write_file if single else kit.write)(blueprint, data, target)
    if web:
        page.write(web)
    return Exported(out, checks)


def _check_known(name: str, value: object, known: Collection[object]) -> None:
    if value not in known:
        raise UsageError(f"{name} should be one of {', '.join(map(str, known))}, got {value}")


def _open(run: Path, which: str, dtype: str) -> tuple[LoadedModel, Data | None]:
    """A checkpoint, and its data where they show what quantising costs."""
    if TOLERANCES[dtype].loss is None:
        return loaded.load_checkpoint(run, which=which, device="cpu"), None
    run_with_data = loaded.load_run(run, which=which, device="cpu")
    return run_with_data.model, run_with_data.data


def _write_file(blueprint: Blueprint, data: Data | None, target: Path) -> list[Check]:
    """The graph `generate` with everything inside."""
    model, name = blueprint.trained.model, blueprint.dtype
    ir.save(blueprint.model("generate"), target)
    starts = np.array(blueprint.trained.codec.starts, dtype=np.int64)
    with ort_errors_as_export_errors(target.name):
        checks = list(prove_generate(target, model, starts, name))
        if data is not None:
            step = target.with_name("step.onnx")
            ir.save(blueprint.model("step"), step)
            checks.append(prove_loss(step, model, data, name))
    raise_if_failed(target.name, checks)
    append_proof(target, checks)
    return checks


def _check_target(out: Path, *, single: bool) -> None:
    """Raise a UsageError where something else is in the way."""
    if single and out.is_dir():
        raise UsageError(f"{out}: is a folder", hint="--out FILE.onnx, or a folder for a kit")
    if single or not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not kit.is_kit(out)):
        raise UsageError(
            f"{out}: already exists and is no kit", hint="--out FILE.onnx, or a new folder"
        )
    if others := kit.foreign_files(out) if any(out.iterdir()) else []:
        raise UsageError(
            f"{out}: a new kit would take the place of {', '.join(others)}, too",
            hint="move that elsewhere, or choose another --out",
        )


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A place beside `out` to write to; what is there at the end takes out's name."""
    aside = out.absolute().with_name(f".{out.name}.tmp")
    target, before = aside / "new" / out.name, aside / "before"
    made = [folder for folder in aside.parents if not folder.exists()]
    try:
        aside.mkdir(parents=True, exist_ok=True)
        with _alone(aside, out):
            try:
                _tidy(aside, out)
                target.parent.mkdir(parents=True)
                yield target
                if out.is_dir():  # a folder does not take another's place in one go
                    out.replace(before)
                target.replace(out)
            finally:
                _tidy(aside, out)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{out}: cannot be written: {getattr(error, 'strerror', None) or error}",
            hint="choose another place",
        ) from error
    finally:
        for empty in made:  # unless something was written
            with suppress(OSError):
                empty.rmdir()


@contextmanager
def _alone(aside: Path, out: Path) -> Iterator[None]:
    """Keep other exports to the same place out."""
    lock = FileLock(aside / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(
            f"{out}: another export is writing there", hint="wait for it, or choose another --out"
        ) from None
    try:
        yield
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        lock.release()


def _tidy(aside: Path, out: Path) -> None:
    """Leave nothing of an export but what it wrote, or else what was there before it."""
    before = aside / "before"
    if before.exists() and not out.exists():  # it was killed at the worst moment, or has failed
        before.replace(out)
    for part in (aside / "new", before):
        shutil.rmtree(part, ignore_errors=True)
