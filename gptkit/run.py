"""The one place where everything meets: create a run folder, train, resume."""

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from gptkit import __version__, checkpoint, folder, registry
from gptkit.config import GPTConfig
from gptkit.device import Placement, place
from gptkit.errors import CheckpointError, FormatError, RunError, StoppedError
from gptkit.folder import RunFolder
from gptkit.model import GPT
from gptkit.plugin import Data
from gptkit.recipe import Recipe
from gptkit.registry import Plugins
from gptkit.trained import check_same_data, previewer
from gptkit.trainer import Trainer

_SHOW_CURSOR = b"\x1b[?25h"

Report = Callable[[str], None]
"""Takes a line that tells the user what is going on."""


def train(
    recipe_path: Path, overrides: Sequence[str] = (), *, out: Path | None = None, report: Report
) -> RunFolder:
    """Train a recipe from the start into a new run folder.

    Nothing stays behind unless recipe, plugins, data and model are good.

    Raises:
        GptkitError: what went wrong, in the user's words.
        StoppedError: a signal ended it, after a checkpoint.
    """
    plugins = registry.build(registry.read_recipe(recipe_path, overrides))
    if out:
        folder.check_unused(out)  # before the data, which may take long
    placement = place(plugins.recipe.train)
    data = plugins.dataset.load()
    with folder.claim(out, recipe_path) as run:
        trainer = _trainer(run, plugins, data, placement)
        folder.write_json(run.environment, _environment(plugins, data, placement))
        folder.write_text(run.recipe, plugins.recipe.to_toml())
        report(_summary(trainer, run))
        _fit(trainer, run)
    return run


def resume(path: Path | None, *, report: Report) -> RunFolder:
    """Continue a run from its newest intact checkpoint, as if it had never stopped.

    Raises:
        GptkitError: what went wrong, in the user's words.
        StoppedError: a signal ended it, after a checkpoint.
    """
    run = folder.open_run(path)
    with run.lock():
        checkpoint.sweep(run.checkpoints)
        state, files = _newest_intact(run, report)
        plugins = registry.build(registry.read_recipe(run.recipe))
        if state.step >= plugins.recipe.train.steps:
            report(f"{run.path}: complete at step {state.step}")
            return run
        placement = place(plugins.recipe.train)
        data = plugins.dataset.load()
        check_same_data(run, data)
        trainer = _trainer(run, plugins, data, placement)
        trainer.load(state, files)
        report(f"{_summary(trainer, run)}, from step {state.step}")
        _fit(trainer, run)
    return run


def _trainer(run: RunFolder, plugins: Plugins, data: Data, placement: Placement) -> Trainer:
    entry = registry.codec_entry(data.codec)
    model = _new_model(plugins.recipe, data)
    record = checkpoint.Record(
        folder=run.checkpoints,
        gptkit=__version__,
        config=model.config,
        dataset=plugins.recipe.dataset.use,
        codec=checkpoint.CodecRecord(
            name=entry.name,
            distribution=entry.distribution,
            options=data.codec.model_dump(mode="json"),
        ),
    )
    trainer = Trainer(
        model,
        data,
        options=plugins.recipe.train,
        placement=placement,
        seed=plugins.recipe.seed,
        callbacks=plugins.callbacks,
        run_dir=run.path,
        record=record,
    )
    trainer.state.sample = previewer(model, data.codec)
    return trainer


def _new_model(recipe: Recipe, data: Data) -> GPT:
    shape = recipe.model.model_dump()
    torch.manual_seed(recipe.seed)
    return GPT(GPTConfig(**shape, vocab_size=data.vocab_size, block_size=data.block_size))


def _fit(trainer: Trainer, run: RunFolder) -> None:
    with _stopping_on_signals(trainer) as received:
        trainer.fit()
    if received and trainer.state.step < trainer.state.steps:
        raise StoppedError(
            f"stopped by {received[0].name} at step {trainer.state.step}, checkpoint saved",
            hint=f"gptkit resume {folder.quote(run.path)}",
            signum=received[0],
        )


@contextmanager
def _stopping_on_signals(trainer: Trainer) -> Iterator[list[signal.Signals]]:
    """The first SIGINT or SIGTERM ends training after the step; the second ends it at once."""
    received: list[signal.Signals] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        if received:
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)  # a live display may have hidden it
            os._exit(128 + signum)
        received.append(signal.Signals(signum))
        trainer.interrupted = True

    before = {
        signum: signal.signal(signum, handle)
        for signum in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(signum) is not signal.SIG_IGN  # as in a script's background jobs
    }
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _newest_intact(
    run: RunFolder, report: Report
) -> tuple[checkpoint.State, dict[str, checkpoint.Tensors]]:
    run.step_folder("last")  # raises where there is none at all
    for step_folder in reversed(checkpoint.step_folders(run.checkpoints)):
        try:
            return checkpoint.load(step_folder)
        except FormatError:
            raise  # an upgrade reads it: going back would lose what it holds
        except CheckpointError as error:
            report(f"skipping {error}")
    raise RunError(
        f"{run.path}: no checkpoint is intact",
        hint=f"train it from the start: gptkit train {folder.quote(run.recipe)}",
    )


def _summary(trainer: Trainer, run: RunFolder) -> str:
    millions = trainer.model.n_parameters() / 1e6
    dtype = str(trainer.placement.dtype).removeprefix("torch.")
    return f"{run.path}: {millions:.2f} M parameters on {trainer.placement.device} in {dtype}"


def _environment(plugins: Plugins, data: Data, placement: Placement) -> dict[str, Any]:
    packages = ("gptkit", "torch", "numpy", "pydantic", "safetensors")
    return {
        "argv": sys.argv,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": str(placement.device),
        "dtype": str(placement.dtype).removeprefix("torch."),
        "compile": placement.compile,
        "reasons": placement.reasons,
        "plugins": {f"{entry.kind} {entry.name}": entry.origin for entry in plugins.entries},
        "git_commit": _git_commit(),
        "data_sha256": data.sha256,
    }


def _git_commit() -> str | None:
    try:
        command = ["git", "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
