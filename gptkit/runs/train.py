"""The one place where everything meets: create a run folder, train, resume."""

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from gptkit import __version__
from gptkit.runs import checkpoint
from gptkit.runs import run_folder
from gptkit.training import distributed
from gptkit.recipe import registry
from gptkit.recipe.options import GPTConfig
from gptkit.training.device import RunDevice, resolve_device
from gptkit.errors import CheckpointError, FormatError, RunError, StoppedError
from gptkit.runs.run_folder import RunFolder
from gptkit.model.gpt import GPT
from gptkit.training.distributed import Ranks
from gptkit.plugin import Data
from gptkit.recipe.recipe import Recipe
from gptkit.recipe.registry import Plugins
from gptkit.runs.loaded import check_same_data, previewer
from gptkit.training.trainer import Trainer

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
    with distributed.join() as ranks:
        report = _on_rank_0(report, ranks)
        if begun := _begun_by_this_job(ranks, out):
            return _go_on(begun, ranks, report=report)
        plugins = registry.build(registry.read_recipe(recipe_path, overrides))
        ranks.batch_slice(plugins.recipe.train.batch_size)
        if out and ranks.first:
            run_folder.check_unused(out)  # before the data, which may take long
        run_device = resolve_device(plugins.recipe.train, local_rank=ranks.local_rank)
        data = ranks.rank0_first(plugins.dataset.load)
        with _claim(out, recipe_path, ranks) as run:
            trainer = _trainer(run, plugins, data, run_device, ranks)
            if ranks.first:
                run_folder.write_json(run.environment, _environment(plugins, data, run_device, ranks))
                run_folder.write_text(run.recipe, plugins.recipe.to_toml())
            report(_summary(trainer, run))
            _fit(trainer, run)
    return run


def resume(path: Path | None, *, report: Report) -> RunFolder:
    """Continue a run from its newest intact checkpoint, as if it had never stopped.

    Raises:
        GptkitError: what went wrong, in the user's words.
        StoppedError: a signal ended it, after a checkpoint.
    """
    with distributed.join() as ranks:
        found = str(run_folder.open_run(path).path) if ranks.first else ""
        run = RunFolder(Path(ranks.broadcast(found)))
        if ranks.first:
            run.step_folder("last")  # raises where there is none
        return _go_on(run, ranks, report=_on_rank_0(report, ranks))


def _go_on(run: RunFolder, ranks: Ranks, *, report: Report) -> RunFolder:
    """Continue a run; from its start where it has no checkpoint yet."""
    with run.lock() if ranks.first else nullcontext():
        saved = _saved(run, ranks, report)
        plugins = registry.build(registry.read_recipe(run.recipe))
        step = saved[0].step if saved else 0
        if step >= plugins.recipe.train.steps:
            report(f"{run.path}: complete at step {step}")
            return run
        run_device = resolve_device(plugins.recipe.train, local_rank=ranks.local_rank)
        data = ranks.rank0_first(plugins.dataset.load)
        check_same_data(run, data)
        trainer = _trainer(run, plugins, data, run_device, ranks)
        if saved:
            trainer.load(*saved)
        report(f"{_summary(trainer, run)}, from step {step}")
        _fit(trainer, run)
    return run


def _begun_by_this_job(ranks: Ranks, out: Path | None) -> RunFolder | None:
    """The run that this call of torchrun began before it started its processes again."""
    if not ranks.restarted:
        return None
    found = ""
    if ranks.first:
        runs = [RunFolder(out)] if out else reversed(run_folder.list_runs())
        of_job = (str(run.path) for run in runs if run.read_environment().get("job") == ranks.job)
        found = next(of_job, "")
    begun = ranks.broadcast(found)
    return RunFolder(Path(begun)) if begun else None


@contextmanager
def _claim(out: Path | None, recipe_path: Path, ranks: Ranks) -> Iterator[RunFolder]:
    """A new run folder, which the first rank makes and holds."""
    if ranks.first:
        with run_folder.claim(out, recipe_path) as run:
            ranks.broadcast(str(run.path))
            yield run
    else:
        yield RunFolder(Path(ranks.broadcast()))


def _trainer(
    run: RunFolder, plugins: Plugins, data: Data, run_device: RunDevice, ranks: Ranks
) -> Trainer:
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
        run_device=run_device,
        seed=plugins.recipe.seed,
        ranks=ranks,
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
    ranks = trainer.ranks
    with _stopping_on_signals(trainer) as received:
        trainer.fit()
        signum = int(ranks.all_reduce_max(received[0] if received else 0))
    if signum and trainer.state.step < trainer.state.steps:
        name = signal.Signals(signum).name
        raise StoppedError(
            f"stopped by {name} at step {trainer.state.step}, checkpoint saved",
            hint=f"gptkit resume {run_folder.quote(run.path)}",
            signum=signum,
        )


@contextmanager
def _stopping_on_signals(trainer: Trainer) -> Iterator[list[signal.Signals]]:
    """The first SIGINT or SIGTERM ends training after the step; the second ends it at once.

    Under torchrun a second one changes nothing: it is the first, which torchrun passes on.
    """
    received: list[signal.Signals] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        if received:
            if trainer.ranks.job:
                return
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


def _saved(
    run: RunFolder, ranks: Ranks, report: Report
) -> tuple[checkpoint.State, dict[str, checkpoint.Tensors]] | None:
    """The checkpoint that the first rank finds to be the newest intact one, read by every rank."""
    found = None
    if ranks.first:
        checkpoint.sweep(run.checkpoints)
        if checkpoint.step_folders(run.checkpoints):
            found = _newest_intact(run, report)
    step = int(ranks.all_reduce_max(found[0].step if found else -1))
    if ranks.first or step < 0:
        return found
    return checkpoint.load(run.step_folder(str(step)))


def _newest_intact(
    run: RunFolder, report: Report
) -> tuple[checkpoint.State, dict[str, checkpoint.Tensors]]:
    for step_folder in reversed(checkpoint.step_folders(run.checkpoints)):
        try:
            return checkpoint.load(step_folder)
        except FormatError:
            raise  # an upgrade reads it: going back would lose what it holds
        except CheckpointError as error:
            report(f"skipping {error}")
    raise RunError(
        f"{run.path}: no checkpoint is intact",
        hint=f"train it from the start: gptkit train {run_folder.quote(run.recipe)}",
    )


def _summary(trainer: Trainer, run: RunFolder) -> str:
    millions = trainer.model.n_parameters() / 1e6
    dtype = str(trainer.run_device.dtype).removeprefix("torch.")
    device, ranks = str(trainer.run_device.device), trainer.ranks
    if ranks.size > 1:
        device = f"{ranks.size} x {trainer.run_device.device.type}"
    return f"{run.path}: {millions:.2f} M parameters on {device} in {dtype}"


def _on_rank_0(report: Report, ranks: Ranks) -> Report:
    return report if ranks.first else lambda line: None


def _environment(
    plugins: Plugins, data: Data, run_device: RunDevice, ranks: Ranks
) -> dict[str, Any]:
    packages = ("gptkit", "torch", "numpy", "pydantic", "safetensors")
    return {
        "argv": sys.argv,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "platform": platform.platform(),
        "processes": ranks.size,
        "job": ranks.job,
        "threads": torch.get_num_threads(),
        "device": str(run_device.device),
        "dtype": str(run_device.dtype).removeprefix("torch."),
        "compile": run_device.compile,
        "reasons": run_device.reasons,
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
