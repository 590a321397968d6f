"""Write a run's model in a format: whole or not at all."""

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from gptkit.errors import RunError
from gptkit.files import check_name, lock, make_folder, writing
from gptkit.memory import Need
from gptkit.plugin import Format, TrainedModel
from gptkit.recipe import formats
from gptkit.runs import merge_proof, run_folder
from gptkit.runs.loaded import load_checkpoint, load_data
from gptkit.runs.run_folder import RunFolder
from gptkit.staging import recover, staged

EXPORT = Need("this export", "export it on a computer with more memory")


@EXPORT.explained()
def export(
    path: Path | None,
    format_: Format,
    *,
    out: Path | None = None,
    checkpoint: str | int = "last",
    weights: str | None = None,
) -> Path:
    """Write a run's checkpoint in a format.

    Args:
        path: the run folder; None takes the newest one.
        format_: with its options.
        out: the file or folder; None takes the format's default.
        checkpoint: "last", "best" or a step's number.
        weights: the name of a further set of weights, such as "ema"; None: the model's own.

    Returns:
        What was written.

    Raises:
        UsageError: an option of the format or the place is wrong.
        ExportError: what was written is not equal to the checkpoint; it was deleted.
    """
    out = out or format_.default_path()
    check_name(out)
    format_.check(out)
    run = run_folder.open_run(path)
    model = trained_model(run.path, checkpoint=checkpoint, weights=weights)
    with _staged(out) as new:
        format_.write(model, new)
    format_.written(out)
    return out


def trained_model(
    path: Path, *, checkpoint: str | int = "last", weights: str | None = None
) -> TrainedModel:
    """A run's model with all that a format may write of it; see `export`.

    Adapters are merged, and the merged weights are compared with them.
    """
    run = run_folder.open_run(path)
    loaded = load_checkpoint(path, checkpoint=checkpoint, weights=weights, device="cpu")
    state = loaded.state
    if state.lora:
        merge_proof.prove(run, run.step_folder(state.step), state, loaded.model, weights)
    model = TrainedModel(
        module=loaded.model,
        config=loaded.model.config.model_dump(mode="json"),
        weights={name: tensor.detach() for name, tensor in loaded.model.weights().items()},
        codec=loaded.codec,
        dataset=state.dataset,
        step=state.step,
        val_loss=loaded.val_loss,
        weights_sha256=loaded.weights_sha256,
        load_data=partial(load_data, path),
        recipe=_recipe_of(run),
        about=_about(run),
    )
    return replace(model, export=partial(_also, model))


def _also(model: TrainedModel, name: str, path: Path, **options: Any) -> None:
    format_ = formats.make(name, options)
    format_.check(path)
    format_.write(model, path)


def _recipe_of(run: RunFolder) -> Mapping[str, Any]:
    """The recipe as it is written; what it says need not be valid to write the model."""
    with suppress(OSError, ValueError):
        return tomllib.loads(run.recipe.read_text(encoding="utf-8"))
    return {}


def _about(run: RunFolder) -> Mapping[str, Any]:
    """What an import noted of the model that the run has, or began with."""
    found = run.read_environment().get("imported")
    return found if isinstance(found, dict) else {}


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A path to write to, which takes the name `out` at the end; see `gptkit.staging.staged`.

    Raises:
        RunError: the place cannot be written, or another export is writing there.
    """
    busy = RunError(
        f"{out}: another export is writing there", hint="wait for it, or choose another --out"
    )
    with ExitStack() as stack:
        try:
            with writing(out, hint="choose another place"):
                stack.callback(make_folder(out.absolute().parent))
                with lock(out.with_name(f".{out.name}.lock"), busy=busy, keep=False):
                    recover(out)
                    with staged(out) as new:
                        yield new
        except SafetensorError as error:  # from a full disk, too
            fault = f"{out}: cannot be written: {error}"
            raise RunError(fault, hint="choose another place") from error
