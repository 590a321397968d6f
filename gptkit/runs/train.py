"""Train and resume: from a recipe to a run folder."""

import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptkit.errors import StoppedError, UsageError
from gptkit.files import quote, write_json
from gptkit.plugin import Callback
from gptkit.recipe import build
from gptkit.recipe.build import Plugins
from gptkit.recipe.table import Report
from gptkit.runs import (
    base,
    changes,
    checkpoint,
    environment,
    new_folder,
    origin,
    run_folder,
    signals,
)
from gptkit.runs.changes import Change, Overrides
from gptkit.runs.loaded import check_same_codec, check_same_data
from gptkit.runs.origin import Origin
from gptkit.runs.run_folder import RunFolder
from gptkit.runs.setup import (
    Beginning,
    build_trainer,
    check_same_sizes,
    choose_device,
    memory_need,
    with_callbacks,
)
from gptkit.runs.shared import claim, newest_snapshot, on_rank_0, previous_run
from gptkit.runs.weights import read_codec
from gptkit.terminal import lasting
from gptkit.training import distributed, snapshot
from gptkit.training.distributed import Ranks
from gptkit.training.snapshot import Snapshot
from gptkit.training.trainer import Trainer


@dataclass(frozen=True)
class Caller:
    """Who trains: by default the command line, else a Python program."""

    callbacks: Callback | Sequence[Callback] = ()
    """Run before the recipe's."""
    handling: signals.Handling = signals.handled
    """What Ctrl-C does."""
    quiet: bool = False
    """Whether callbacks should show nothing."""
    started: Callable[[RunFolder], None] = lambda run: None
    """Is told the run folder as soon as it is known."""


COMMAND_LINE = Caller()


@lasting()
def train(
    recipe: Path | Mapping[str, Any],
    overrides: Overrides = (),
    *,
    out: Path | None = None,
    start: Path | None = None,
    which: str | int = "last",
    weights: str | None = None,
    report: Report,
    caller: Caller = COMMAND_LINE,
) -> RunFolder:
    """Train a recipe from the start into a new run folder.

    Recipe, plugins, data and model are checked first; if one is wrong, no folder remains.

    Args:
        recipe: a TOML file, or the same as nested tables.
        overrides: fields to change.
        out: the run folder; None makes a new one below `runs/`.
        start: a run whose weights to begin with; None begins with random ones.
        which: of its checkpoints, "last", "best" or a step's number.
        weights: the name of a further set of weights in it; None: the model's own.
        report: shows a line of text.
        caller: who trains.

    Raises:
        GptkitError: what went wrong, in the user's words.
        StoppedError: a signal ended it, after a checkpoint.
    """
    with distributed.join() as ranks:
        report = on_rank_0(report, ranks)
        if previous := previous_run(ranks, out):
            return _continue(previous, ranks, report=report, caller=caller)
        valid = build.read(recipe, changes.texts(overrides), report=report)
        plugins = with_callbacks(build.build(valid), caller.callbacks)
        ranks.batch_slice(plugins.recipe.train.batch_size)
        if out and ranks.first:
            new_folder.check_unused(out)  # before the data, which may take long
        plugins, begin = _begin(plugins, start, which, weights)
        run_device = choose_device(plugins.recipe, ranks)
        data = ranks.rank0_first(plugins.load_data)
        name = recipe.stem if isinstance(recipe, Path) else valid.dataset.use
        with claim(out, name, ranks) as run:
            caller.started(run)
            trainer = build_trainer(
                plugins, data, run=run, run_device=run_device, ranks=ranks, begin=begin
            )
            if ranks.first:
                about = environment.describe(plugins, data, run_device, ranks)
                came_from = dict(begin.record) if begin else {}
                times = {"trained": run_folder.now()}
                write_json(run.environment, about | came_from | times)
                changes.write_recipe(run, plugins.recipe)
            report(_summary(trainer, run) + (f", from {begin}" if begin else ""))
            del begin  # so that its tensors take no memory during training
            _fit(trainer, run, caller)
    return run


@lasting()
def resume(
    path: Path | None,
    overrides: Overrides = (),
    *,
    report: Report,
    caller: Caller = COMMAND_LINE,
) -> RunFolder:
    """Continue a run from its newest intact checkpoint, as if it had never stopped.

    A run that has no checkpoint yet is started from its recipe.

    Args:
        path: the run folder; None takes the newest one.
        overrides: fields to change from now on; the run's recipe is rewritten with them.
        report: shows a line of text.
        caller: who trains.

    Raises:
        GptkitError: what went wrong, in the user's words.
        StoppedError: a signal ended it, after a checkpoint.
    """
    with distributed.join() as ranks:
        found = str(run_folder.open_run(path).path) if ranks.first else ""
        run = RunFolder(Path(ranks.broadcast(found)))
        report = on_rank_0(report, ranks)
        texts = changes.texts(overrides)
        return _continue(run, ranks, overrides=texts, report=report, caller=caller)


def _continue(
    run: RunFolder,
    ranks: Ranks,
    *,
    overrides: Sequence[str] = (),
    report: Report,
    caller: Caller,
) -> RunFolder:
    """Continue a run; from its start if it has no checkpoint yet."""
    caller.started(run)
    with run.lock() if ranks.first else nullcontext(run) as run:
        saved = newest_snapshot(run, ranks, report)
        plugins, changed = _reread(run, saved, overrides, report)
        plugins = with_callbacks(plugins, caller.callbacks)
        step = saved.step if saved else 0
        steps = plugins.recipe.train.steps
        if steps and step > steps and "train.steps" in changed:
            raise UsageError(
                f"{run.path}: is at step {step} already, past train.steps={steps}",
                hint=f"set more: --set train.steps={2 * step}",
            )
        if steps and step >= steps:  # else the data is needed to know
            return _complete(run, step, report)
        run_device = choose_device(plugins.recipe, ranks, run=run)
        data = ranks.rank0_first(plugins.load_data)
        check_same_data(run, data)
        if saved:
            check_same_sizes(run, saved, data)
            check_same_codec(run, read_codec(run.step_folder(saved.step)), data)
        begin = _beginning(run, plugins, saved)
        trainer = build_trainer(
            plugins, data, run=run, run_device=run_device, ranks=ranks, begin=begin
        )
        if step >= trainer.state.steps:
            return _complete(run, step, report)
        if saved:
            _restore(trainer, saved, run, report)
        if changed:
            new = {key: change.new for key, change in changed.items()}
            report(f"changed: {changes.told(new)}")
        if ranks.first:
            if "versions" not in run.read_environment():  # an imported model
                about = environment.describe(plugins, data, run_device, ranks)
                write_json(run.environment, about | run.read_environment())
            changes.write(run, plugins.recipe, changed, step=step)
        ranks.barrier()
        if "train.batch_size" in changes.since(run, step):
            trainer.state.batch_size = plugins.recipe.train.batch_size
        where = f"from step {step}" if saved else "which has no checkpoint yet, from its start"
        report(f"{_summary(trainer, run)}, {where}")
        del saved, begin  # so that their tensors take no memory during training
        _fit(trainer, run, caller)
    return run


def _begin(
    plugins: Plugins, start: Path | None, which: str | int, weights: str | None
) -> tuple[Plugins, Origin | None]:
    """The complete recipe, and the weights to begin with; None: random ones."""
    if start is None:
        plugins, begin = origin.completed(plugins)
        if begin is None and plugins.recipe.lora:
            raise _needs_weights()
        return plugins, begin
    if init := plugins.recipe.model.init:
        raise UsageError(
            f"--from {start}: the recipe has model.init {init}, too", hint="take one of them"
        )
    return plugins, origin.find(start, which, weights)


def _beginning(run: RunFolder, plugins: Plugins, saved: Snapshot | None) -> Beginning | None:
    """The weights that a resumed run begins with, before its checkpoint is restored.

    Raises:
        GptkitError: they are gone, or there are none beside which adapters can be trained.
    """
    recipe = plugins.recipe
    if not recipe.lora:
        return None if saved else origin.find_again(run, recipe.model)
    if saved:
        state = checkpoint.load_state(run.step_folder(saved.step))
        return base.of(run, state.base_sha256)
    own = base.of(run)
    begin = own if own.path.exists() else origin.find_again(run, recipe.model)
    if begin is None:
        raise _needs_weights()
    return begin


def _needs_weights() -> UsageError:
    return UsageError(
        "lora: there are no weights beside which adapters could be trained",
        hint="begin with those of a run, --from RUN, or set model.init",
    )


def _restore(trainer: Trainer, saved: Snapshot, run: RunFolder, report: Report) -> None:
    """Continue from a snapshot; say which callbacks are new or gone."""
    trainer.load(saved)
    if told := snapshot.describe_changes(saved, trainer.callbacks):
        report(told)
    if trainer.ranks.first:
        trainer.state.checkpoint = run.step_folder(saved.step)


def _complete(run: RunFolder, step: int, report: Report) -> RunFolder:
    """Say that a run is complete, and how to train longer."""
    report(f"{run.path}: complete at step {step}")
    longer = f"gptkit resume {quote(run.path)} --set train.steps={2 * step}"
    report(f"hint:  train longer: {longer}")
    return run


def _reread(
    run: RunFolder, saved: Snapshot | None, overrides: Sequence[str], report: Report
) -> tuple[Plugins, dict[str, Change]]:
    """The plugins of a run's recipe with overrides, and the fields that the run had otherwise.

    Raises:
        UsageError: one of them cannot be changed.
    """
    written = build.build(build.read(run.recipe))
    wanted = written
    if overrides:
        wanted = build.build(build.read(run.recipe, overrides, report=report))
    state = checkpoint.load_state(run.step_folder(saved.step)) if saved else None
    unset = build.unset(written.recipe).flat()
    before = changes.trained_with(run, written.recipe.flat(), unset=unset, state=state)
    changed = changes.between(before, wanted.recipe.flat())
    if saved is None:
        return wanted, changed  # nothing is trained yet that a field would have to fit
    changes.check(run, changed, overrides, changeable=wanted.changeable)
    if "train.batch_size" in changed and wanted.recipe.train.steps is None:
        raise UsageError(
            f"{run.path}: with another train.batch_size the run has another number of steps",
            hint="say how many it has in all: --set train.steps=N",
        )
    return wanted, changed


def _fit(trainer: Trainer, run: RunFolder, caller: Caller) -> None:
    ranks, trainer.state.quiet = trainer.ranks, caller.quiet
    config, options = trainer.model.config, trainer.options
    need = memory_need(config, options, trainer.run_device, ranks, trainer.trained)
    with caller.handling(trainer.interrupt, under_torchrun=ranks.job is not None) as received:
        with need.explained():
            trainer.fit()
        signum = int(ranks.all_reduce_max(received[0] if received else 0))
    if signum and trainer.state.step < trainer.state.steps:
        name = signal.Signals(signum).name
        raise StoppedError(
            f"stopped by {name} at step {trainer.state.step}, checkpoint saved",
            hint=f"gptkit resume {quote(run.path)}",
            signum=signum,
        )


def _summary(trainer: Trainer, run: RunFolder) -> str:
    parameters = trainer.model.n_parameters()
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    millions = f"{parameters / 1e6:.2f} M parameters"
    if trained < parameters:
        millions += f", {trained / 1e6:.3g} M of them trained,"
    run_device, ranks = trainer.run_device, trainer.ranks
    device = str(run_device.device)
    if ranks.size > 1:
        device = f"{ranks.size} x {run_device.device.type}"
    steps = "" if trainer.options.steps else f", {trainer.state.steps} steps"
    return f"{run.path}: {millions} on {device} in {run_device.dtype_name}{steps}"
