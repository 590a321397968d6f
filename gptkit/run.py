"""Train in Python: `gptkit.train`, `gptkit.resume` and the Run that they return.

They do what the commands do, in a program of somebody else's: also in a notebook cell and outside
the main thread. Errors are a `GptkitError`. The program's random numbers, threads and signal
handlers are afterwards as they were.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gptkit import loading
from gptkit.analysis.evaluation import RunEvaluation, evaluate_run
from gptkit.arguments import checked
from gptkit.data.progress import silent
from gptkit.errors import GptkitError
from gptkit.files import open_file
from gptkit.plugin import Callback, Data, Dataset
from gptkit.recipe import build, formats
from gptkit.recipe.recipe import Recipe
from gptkit.runs import checkpoint, importing, origin, signals
from gptkit.runs import train as training
from gptkit.runs.changes import Overrides, texts
from gptkit.runs.export import export
from gptkit.runs.run_folder import RunFolder, open_run
from gptkit.runs.setup import build_trainer, with_callbacks
from gptkit.runs.train import Caller
from gptkit.sampling.model import Model
from gptkit.terminal import say
from gptkit.training.process_state import untouched
from gptkit.training.trainer import Trainer

RecipeSource = str | os.PathLike[str] | Recipe | Mapping[str, Any]
"""The path of a TOML file, a Recipe, or its tables as a dict."""


class SavedStep(NamedTuple):
    """A checkpoint of a run."""

    step: int
    val_loss: float | None
    """In nats per token; None before the first evaluation."""


@dataclass(frozen=True, init=False)
class Run:
    """A run folder: what was trained, and what can be done with it.

    A Run is accepted wherever gptkit takes the path of a run folder.

    Args:
        path: of a run folder; that it is one is checked when it is used.

    Raises:
        UsageError: from every method, if the path is not a run folder.
    """

    path: Path

    @checked
    def __init__(self, path: str | os.PathLike[str]) -> None:
        object.__setattr__(self, "path", Path(path))

    def __fspath__(self) -> str:
        """The folder's path."""
        return str(self.path)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, oldest first; empty if no callback wrote it.

        A damaged line is left out, as one that a killed process left unfinished.
        """
        path, records = open_run(self.path).path / "metrics.jsonl", []
        with suppress(OSError), open_file(path) as file:
            for line in file:
                with suppress(ValueError, RecursionError):
                    records.append(json.loads(line))
        return [record for record in records if isinstance(record, dict)]

    @property
    def best(self) -> SavedStep | None:
        """The checkpoint with the lowest validation loss; None if there is none."""
        return _saved(checkpoint.best(open_run(self.path).checkpoints))

    @property
    def last(self) -> SavedStep | None:
        """The newest checkpoint; None if there is none."""
        folders = checkpoint.step_folders(open_run(self.path).checkpoints)
        return _saved(folders[-1] if folders else None)

    def load(
        self,
        *,
        checkpoint: str | int = "last",
        weights: str | None = None,
        device: str = "auto",
        engine: str = "auto",
    ) -> Model:
        """Load the model of a checkpoint; see `gptkit.load`."""
        return loading.load(
            self.path, checkpoint=checkpoint, weights=weights, device=device, engine=engine
        )

    @checked
    def evaluate(
        self,
        *,
        checkpoint: str | int = "last",
        weights: str | None = None,
        device: str = "auto",
        classify: bool = False,
    ) -> RunEvaluation:
        """The loss of a checkpoint over the whole validation split, as `gptkit eval` measures it.

        Args:
            checkpoint: "last", "best" or a step's number.
            weights: the name of a further set of weights, such as "ema".
            device: "auto", "cpu", "mps", "cuda" or "cuda:N".
            classify: also classify by the highest p(x | class), for `accuracy`.

        Raises:
            RunError: the data is not what the run was trained on.
        """
        with untouched():
            return evaluate_run(
                self.path,
                checkpoint=checkpoint,
                weights=weights,
                device=device,
                by_class=classify,
            )

    @checked
    def export(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        to: str = "onnx",
        checkpoint: str | int = "last",
        weights: str | None = None,
        **options: Any,
    ) -> Path:
        """Write the model of a checkpoint for other programs, as `gptkit export` does.

        Args:
            path: what to write, for ONNX a file that ends in .onnx or a folder for a bundle; an
                earlier export there is replaced. None takes the format's default, model.onnx.
            to: the format, "onnx" or one of a plugin.
            checkpoint: "last", "best" or a step's number.
            weights: the name of a further set of weights, such as "ema".
            options: of the format, e.g. dtype="float16".

        Returns:
            What was written.

        Raises:
            UsageError: an option of the format or the path is wrong.
            ExportError: what was written is not equal to the checkpoint; it was deleted.
        """
        out, form = None if path is None else Path(path), formats.make(to, options)
        with untouched():
            return export(self.path, form, out=out, checkpoint=checkpoint, weights=weights)


@checked
def train(
    recipe: RecipeSource,
    overrides: Overrides = (),
    *,
    callbacks: Callback | Sequence[Callback] = (),
    out: str | os.PathLike[str] | None = None,
    start: str | os.PathLike[str] | None = None,
    checkpoint: str | int = "last",
    weights: str | None = None,
    quiet: bool = False,
) -> Run:
    """Train a recipe from the start into a new run folder.

    The first Ctrl-C ends training after the step, with a checkpoint; the second one at once.

    Args:
        recipe: the path of a TOML file, a Recipe, or its tables as a dict.
        overrides: values by key, e.g. {"train.steps": 300}, as `--set` takes them.
        callbacks: run before the recipe's, so that its log writes what they record. A resumed run
            needs them again: the run folder keeps only their state.
        out: the run folder; None makes a new one under `runs/`.
        start: a run whose weights to begin with; None begins with random ones.
        checkpoint: of `start`: "last", "best" or a step's number.
        weights: of that checkpoint, the name of a further set; None: the model's own.
        quiet: show nothing but warnings.

    Raises:
        GptkitError: what went wrong. If there is a run folder, `error.run` is its Run.
        StoppedError: Ctrl-C ended it, after a checkpoint.
    """
    folder = None if out is None else Path(out)
    with _call(callbacks, quiet) as (caller, report):
        found = training.train(
            _source(recipe),
            overrides,
            out=folder,
            start=None if start is None else Path(start),
            which=checkpoint,
            weights=weights,
            report=report,
            caller=caller,
        )
    return Run(found.path)


@checked
def resume(
    path: str | os.PathLike[str] | None = None,
    overrides: Overrides = (),
    *,
    callbacks: Callback | Sequence[Callback] = (),
    quiet: bool = False,
) -> Run:
    """Continue a run from its newest checkpoint, exactly; one without is started from its recipe.

    Args:
        path: the run folder; None takes the newest one.
        overrides: fields to change from now on, e.g. {"train.steps": 600} to train longer.
        callbacks: those that `train` was given.
        quiet: show nothing but warnings.

    Raises:
        GptkitError: what went wrong; `error.run` is the Run.
        StoppedError: Ctrl-C ended it, after a checkpoint.
    """
    folder = None if path is None else Path(path)
    with _call(callbacks, quiet) as (caller, report):
        found = training.resume(folder, overrides, report=report, caller=caller)
    return Run(found.path)


@checked
def import_model(
    source: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    format: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Make a run at step 0 of a model of another program, as `gptkit import` does.

    Args:
        source: a folder or a file, or a name that a format knows.
        out: the run folder; None makes a new one below `runs/`.
        format: its name; None takes the installed one that reads the source.
        quiet: show nothing.
        options: of the format.

    Raises:
        GptkitError: what is wrong with the source; nothing is kept.
    """
    made = formats.make(format or formats.find_reader(str(source)), options)
    report = (lambda line: None) if quiet else say
    found = importing.import_model(
        str(source), made, out=None if out is None else Path(out), report=report
    )
    return Run(found.path)


@checked
def trainer(
    recipe: RecipeSource,
    overrides: Overrides = (),
    *,
    data: Data | None = None,
    callbacks: Callback | Sequence[Callback] = (),
) -> Trainer:
    """A Trainer that is ready, for loops of your own; it makes no run folder.

    `for state in trainer.steps()` trains; `trainer.model` is the GPT. It begins with the weights
    that `train` begins with; dropout uses torch's random numbers as the program leaves them.

    Args:
        recipe: the path of a TOML file, a Recipe, or its tables as a dict.
        overrides: values by key, as for `train`.
        data: what to train on; None loads the recipe's data set.
        callbacks: run before the recipe's.
    """
    with untouched():
        plugins = build.build(build.read(_source(recipe), texts(overrides)))
        plugins, begin = origin.completed(with_callbacks(plugins, callbacks))
        return build_trainer(plugins, data or plugins.load_data(), begin=begin)


@checked
def dataset(recipe: RecipeSource, overrides: Overrides = ()) -> Dataset:
    """The data set of a recipe; its `load()` reads the data. Callbacks need not be installed.

    Args:
        recipe: the path of a TOML file, a Recipe, or its tables as a dict.
        overrides: values by key, e.g. {"dataset.path": "my.txt"}, as `--set` takes them.

    Raises:
        GptkitError: what is wrong with the recipe.
    """
    return build.without_callbacks(_source(recipe), texts(overrides)).dataset


@contextmanager
def _call(
    callbacks: Callback | Sequence[Callback], quiet: bool
) -> Iterator[tuple[Caller, Callable[[str], None]]]:
    """What a call of `train` or `resume` needs; a GptkitError gets the Run."""
    started: list[RunFolder] = []
    caller = Caller(
        callbacks=callbacks, handling=signals.ctrl_c, quiet=quiet, started=started.append
    )
    try:
        with untouched(), silent(quiet):
            yield caller, (lambda line: None) if quiet else say
    except GptkitError as error:
        if started and started[0].recipe.exists():
            error.run = Run(started[0].path)
        raise


def _source(recipe: RecipeSource) -> Path | Mapping[str, Any]:
    if isinstance(recipe, Recipe):
        return recipe.model_dump(mode="json", exclude_none=True)
    return recipe if isinstance(recipe, Mapping) else Path(recipe)


def _saved(step_folder: Path | None) -> SavedStep | None:
    if step_folder is None:
        return None
    state = checkpoint.load_state(step_folder)
    return SavedStep(state.step, state.val_loss)
