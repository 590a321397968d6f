"""From a recipe's objects to a trainer, and from its snapshots to step folders and back."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch

from gptkit import __version__
from gptkit.errors import UsageError
from gptkit.model.gpt import GPT
from gptkit.plugin import Callback, Data
from gptkit.recipe import build, codec_record
from gptkit.recipe.build import Plugins
from gptkit.recipe.codec_record import CodecRecord
from gptkit.recipe.options import GPTConfig
from gptkit.recipe.recipe import Recipe
from gptkit.runs import checkpoint
from gptkit.runs.origin import Origin
from gptkit.runs.run_folder import RunFolder
from gptkit.runs.state import State
from gptkit.training.callbacks import Callbacks
from gptkit.training.device import RunDevice, resolve_device
from gptkit.training.distributed import ALONE, Ranks
from gptkit.training.snapshot import Snapshot
from gptkit.training.trainer import Trainer

SAVED = tuple(saved.name for saved in fields(Snapshot) if saved.name != "tensors")
"""What `state.json` says of a snapshot, under the same names."""


def with_callbacks(plugins: Plugins, callbacks: Callback | Sequence[Callback]) -> Plugins:
    """The objects of a recipe, with callbacks that run before its own, named after their classes.

    Raises:
        UsageError: one is no callback.
    """
    named: dict[str, Callback] = {}
    for callback in [callbacks] if isinstance(callbacks, Callback) else callbacks:
        if not isinstance(callback, Callback):
            raise UsageError(
                f"callbacks: {callback!r} is no object of a class that extends Callback",
                hint="callbacks=[MyCallback()], with class MyCallback(gptkit.plugin.Callback)",
            )
        name = build.unused_name(type(callback).__name__, {**named, **plugins.callbacks})
        named[name] = callback
    return replace(plugins, callbacks={**named, **plugins.callbacks})


def build_trainer(
    plugins: Plugins,
    data: Data,
    *,
    run: RunFolder | None = None,
    run_device: RunDevice | None = None,
    ranks: Ranks = ALONE,
    begin: Origin | None = None,
) -> Trainer:
    """A trainer with a new model, set up as the recipe says.

    Args:
        plugins: the recipe and its objects.
        data: what its data set loaded.
        run: where checkpoints go; None writes none.
        run_device: where to train; None takes what the recipe asks for.
        ranks: the processes that train together.
        begin: the weights to begin with; None begins with random ones.

    Raises:
        UsageError: the weights do not fit.
    """
    options = plugins.recipe.train
    model = _new_model(plugins.recipe, data)
    if begin:
        begin.give(model, data.codec)
    save = (
        None
        if run is None
        else saver(
            run.checkpoints,
            keep=options.keep,
            config=model.config,
            dataset=plugins.recipe.dataset.use,
            codec=codec_record.record_codec(data.codec),
        )
    )
    return Trainer(
        model,
        data,
        options=options,
        run_device=run_device or resolve_device(options, local_rank=ranks.local_rank),
        seed=plugins.recipe.seed,
        dataset=str(plugins.entries[0]),
        ranks=ranks,
        callbacks=Callbacks(plugins.callbacks, labels=plugins.labels, on_error=plugins.on_error),
        recipe=plugins.recipe.model_dump(mode="json", exclude_none=True),
        run_dir=run.path if run else None,
        save=save,
    )


def saver(
    folder: Path, *, keep: int, config: GPTConfig, dataset: str, codec: CodecRecord
) -> Callable[[Snapshot], Path]:
    """The function that writes a run's checkpoints, deletes old ones and returns the step folder.

    Args:
        folder: the run's `checkpoints/`.
        keep: how many of the newest to keep, besides the best one.
        config: of the model.
        dataset: the data set's name.
        codec: the record that `make_codec` makes the codec from.
    """

    def save(snapshot: Snapshot) -> Path:
        about = {"gptkit": __version__, "config": config, "dataset": dataset, "codec": codec}
        saved = {name: getattr(snapshot, name) for name in SAVED}
        step_folder = checkpoint.save(folder, State(**about, **saved), snapshot.tensors)
        checkpoint.delete_later(folder, snapshot.step)
        checkpoint.prune(folder, keep)
        checkpoint.link(folder)
        return step_folder

    return save


def read_snapshot(step_folder: Path) -> Snapshot:
    """The snapshot that a step folder holds, for `Trainer.load`.

    Raises:
        CheckpointError: the folder is damaged, incomplete or of a newer format.
    """
    state, tensors = checkpoint.load(step_folder)
    return Snapshot(**{name: getattr(state, name) for name in SAVED}, tensors=tensors)


def _new_model(recipe: Recipe, data: Data) -> GPT:
    shape = recipe.model.model_dump()
    torch.manual_seed(recipe.seed)
    config = GPTConfig(**shape, vocab_size=data.vocab_size, block_size=data.block_size)
    return GPT(config, recompute=recipe.train.recompute)
