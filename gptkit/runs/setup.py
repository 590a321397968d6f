"""From a recipe's objects to a trainer, and from its snapshots to step folders and back."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path

import torch

from gptkit import __version__
from gptkit.conformance.dataset import check_loaded
from gptkit.errors import RunError
from gptkit.files import quote
from gptkit.memory import Need
from gptkit.model.gpt import GPT
from gptkit.plugin import Callback, Data
from gptkit.recipe import build, codec_record, sizes
from gptkit.recipe.build import Plugins
from gptkit.recipe.codec_record import CodecRecord
from gptkit.recipe.options import GPTConfig, TrainOptions
from gptkit.recipe.recipe import Recipe
from gptkit.runs import checked, checkpoint, checkpoint_writer
from gptkit.runs.origin import Origin
from gptkit.runs.run_folder import RunFolder
from gptkit.runs.state import State
from gptkit.training import device
from gptkit.training.callbacks import Callbacks
from gptkit.training.device import RunDevice, resolve_device
from gptkit.training.distributed import ALONE, Ranks
from gptkit.training.snapshot import Snapshot
from gptkit.training.trainer import Trainer

SAVED = tuple(saved.name for saved in fields(Snapshot) if saved.name != "tensors")
"""What `state.json` says of a snapshot, under the same names."""


def with_callbacks(plugins: Plugins, callbacks: Callback | Sequence[Callback]) -> Plugins:
    """The objects of a recipe, with callbacks that run before its own, named by their classes."""
    named: dict[str, Callback] = {}
    for callback in [callbacks] if isinstance(callbacks, Callback) else callbacks:
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
        PluginError: the data breaks the contract.
        UsageError: the weights do not fit.
        RunError: there is too little memory.
    """
    options = plugins.recipe.train
    check_loaded(data, str(plugins.entries[0]))
    run_device = run_device or choose_device(plugins.recipe, ranks)
    model = _new_model(plugins, data, run_device, ranks)
    if begin:
        begin.check(model.config, data.codec)
    save = (
        None
        if run is None
        else saver(
            run.checkpoints,
            keep=options.keep,
            dataset=plugins.recipe.dataset.use,
            codec=codec_record.record_codec(data.codec),
            ranks=ranks.apart() if options.shard else ALONE,
        )
    )
    trainer = Trainer(
        model,
        data,
        options=options,
        run_device=run_device,
        seed=plugins.recipe.seed,
        dataset=str(plugins.entries[0]),
        ranks=ranks,
        callbacks=Callbacks(plugins.callbacks, labels=plugins.labels, on_error=plugins.on_error),
        recipe=plugins.recipe.model_dump(mode="json", exclude_none=True),
        run_dir=run.path if run else None,
        check=run.check if run else lambda: None,
        save=save,
    )
    if begin:
        # A batch of another shape would be compiled for itself.
        eager = torch.compiler.set_stance("force_eager") if run_device.compile else nullcontext()
        with eager:
            begin.give(model)
    return trainer


def choose_device(recipe: Recipe, ranks: Ranks, *, run: RunFolder | None = None) -> RunDevice:
    """Where and in which precision to train, the latter as rank 0 chooses it for all.

    Args:
        recipe: says what is wanted.
        ranks: the processes that train together; all of them call this.
        run: which is resumed; on a CPU its precision stays what it was.
    """
    options = recipe.train
    if not ranks.first:  # it would only disturb the trial of the first
        options = options.model_copy(update={"dtype": "float32"})
    found = resolve_device(
        options,
        width=recipe.model.n_embd,
        before=run.cpu_dtype if run else None,
        local_rank=ranks.local_rank,
    )
    told = ranks.broadcast(f"{found.dtype_name} {found.reasons['dtype']}")
    dtype, _, reason = told.partition(" ")
    return replace(found, dtype=getattr(torch, dtype), reasons=found.reasons | {"dtype": reason})


def saver(
    folder: Path, *, keep: int, dataset: str, codec: CodecRecord, ranks: Ranks = ALONE
) -> Callable[[Snapshot], Path]:
    """The function that writes a run's checkpoints, deletes old ones and returns the step folder.

    Args:
        folder: the run's `checkpoints/`.
        keep: how many of the newest to keep, besides the best one.
        dataset: the data set's name.
        codec: the record that `make_codec` makes the codec from.
        ranks: those that hold parts of the tensors, over connections that nothing else uses.
    """

    def save(snapshot: Snapshot) -> Path:
        about = {"gptkit": __version__, "dataset": dataset, "codec": codec}
        saved = {name: getattr(snapshot, name) for name in SAVED}
        state = State(**about, **saved)
        step_folder = checkpoint_writer.save(folder, state, snapshot.tensors, ranks)
        if ranks.first:
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
    state, tensors = checked.load(step_folder)
    return Snapshot(**{name: getattr(state, name) for name in SAVED}, tensors={**tensors})


def memory_need(
    config: GPTConfig, options: TrainOptions, run_device: RunDevice, ranks: Ranks
) -> Need:
    """The memory that each process of a training needs."""
    item_size = run_device.dtype.itemsize
    return sizes.to_train(config, options, item_size=item_size, processes=ranks.size)


def check_same_sizes(run: RunFolder, saved: Snapshot, data: Data) -> None:
    """Raise a RunError if the data makes another model than the checkpoint's.

    What the recipe makes is compared by `changes`.
    """
    faults = [
        f"{run.path}: {key}: the checkpoint of step {saved.step} has {theirs}, the data {ours}"
        for key in ("vocab_size", "block_size")
        if (theirs := getattr(saved.config, key)) != (ours := getattr(data, key))
    ]
    if faults:
        raise RunError(
            "\n".join(faults),
            hint=f"restore the data, or start again: gptkit train {quote(run.recipe)}",
        )


def _new_model(plugins: Plugins, data: Data, run_device: RunDevice, ranks: Ranks) -> GPT:
    """The recipe's model for this data, with the random weights of the recipe's seed."""
    recipe, shape = plugins.recipe, plugins.recipe.model.shape()
    config = GPTConfig(**shape, vocab_size=data.vocab_size, block_size=data.block_size)
    need = memory_need(config, recipe.train, run_device, ranks)
    need.check(device.memory(run_device.device))
    torch.manual_seed(recipe.seed)
    recompute, shared = recipe.train.recompute, recipe.train.shard and ranks.size > 1
    with need.explained():
        if not shared:
            return GPT(config, seed=recipe.seed, recompute=recompute)
        with torch.device("meta"):  # each rank draws its part
            return GPT(config, seed=None, recompute=recompute)
