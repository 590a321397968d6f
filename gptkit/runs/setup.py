"""From a recipe's objects to a trainer, and from its snapshots to step folders and back."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gptkit import __version__
from gptkit.codec import Codec
from gptkit.conformance.dataset import check_loaded
from gptkit.errors import RunError
from gptkit.files import quote
from gptkit.memory import Need
from gptkit.model.blocks import plain_linear
from gptkit.model.gpt import GPT
from gptkit.model.lora import adapted
from gptkit.plugin import Callback, Data
from gptkit.recipe import adapters, build, codec_record, sizes, tuning
from gptkit.recipe.build import Plugins
from gptkit.recipe.codec_record import CodecRecord
from gptkit.recipe.options import GPTConfig, TrainOptions
from gptkit.recipe.recipe import Recipe
from gptkit.recipe.sizes import Trained
from gptkit.recipe.tuning import Tuning
from gptkit.runs import base, checked, checkpoint, checkpoint_writer
from gptkit.runs.base import Base
from gptkit.runs.run_folder import RunFolder
from gptkit.runs.state import State
from gptkit.training import device
from gptkit.training.callbacks import Callbacks
from gptkit.training.device import RunDevice, resolve_device
from gptkit.training.distributed import ALONE, Ranks
from gptkit.training.snapshot import Snapshot
from gptkit.training.trainer import Trainer

Named = Mapping[str, Tensor]
"""Tensors by name."""
Files = Mapping[str, Named]
"""Those of each file of a checkpoint, by its name without ending."""


class Beginning(Protocol):
    """Weights that a training begins with."""

    def check(self, config: GPTConfig, codec: Codec) -> None:
        """Refuse a model or a codec that they do not fit."""

    def give(self, model: GPT) -> None:
        """Load them into a model."""


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
    begin: Beginning | None = None,
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
    config = config_for(plugins.recipe, data)
    tuned = tuning.find(plugins.recipe.model, plugins.recipe.lora, config)
    model = _new_model(plugins.recipe, tuned, run_device, ranks)
    if begin:
        begin.check(config, data.codec)
    writers = ranks.apart() if run and options.shard else ALONE
    own_base = base.of(run) if run and tuned.lora else None
    save = (
        None
        if run is None
        else saver(
            run.checkpoints,
            keep=options.keep,
            dataset=plugins.recipe.dataset.use,
            codec=codec_record.record_codec(data.codec),
            ranks=writers,
            tuned=tuned,
            beside=own_base,
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
        trained=tuned.trained(),
        run_dir=run.path if run else None,
        check=run.check if run else lambda: None,
        save=save,
    )
    if begin:
        # A batch of another shape would be compiled for itself.
        eager = torch.compiler.set_stance("force_eager") if run_device.compile else nullcontext()
        with eager:
            begin.give(model)
    if own_base and not isinstance(begin, Base) and (options.shard or ranks.first):
        own_base.keep(model, writers)
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
    folder: Path,
    *,
    keep: int,
    dataset: str,
    codec: CodecRecord,
    ranks: Ranks = ALONE,
    tuned: Tuning | None = None,
    beside: Base | None = None,
) -> Callable[[Snapshot], Path]:
    """The function that writes a run's checkpoints, deletes old ones and returns the step folder.

    Args:
        folder: the run's `checkpoints/`.
        keep: how many of the newest to keep, besides the best one.
        dataset: the data set's name.
        codec: the record that `make_codec` makes the codec from.
        ranks: those that hold parts of the tensors, over connections that nothing else uses.
        tuned: says which adapters there are; None: none.
        beside: the weights that they are beside.
    """
    lora = tuned.lora if tuned else None

    def save(snapshot: Snapshot) -> Path:
        about = {"gptkit": __version__, "dataset": dataset, "codec": codec}
        saved = {name: getattr(snapshot, name) for name in SAVED}
        digest = beside.sha256 if beside and ranks.first else None
        state = State(**about, **saved, lora=lora, base_sha256=digest)
        files = snapshot.tensors
        if lora:
            files = _adapters_in(files, partial(adapters.to_peft, snapshot.config, lora))
        step_folder = checkpoint_writer.save(folder, state, files, ranks)
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
    files: Files = {**tensors}
    if state.lora:
        files = _adapters_in(files, partial(adapters.from_peft, state.config, state.lora))
    return Snapshot(**{name: getattr(state, name) for name in SAVED}, tensors=files)


def _adapters_in(files: Files, rename: Callable[[Mapping[str, Tensor]], Named]) -> Files:
    """The files of a snapshot with other names in those of adapters."""
    return {
        name: rename(tensors) if name.partition(".")[0] == adapters.FILE else tensors
        for name, tensors in files.items()
    }


def memory_need(
    config: GPTConfig,
    options: TrainOptions,
    run_device: RunDevice,
    ranks: Ranks,
    trained: Trained | None,
) -> Need:
    """The memory that each process of a training needs."""
    item_size, processes = run_device.dtype.itemsize, ranks.size
    return sizes.to_train(
        config, options, item_size=item_size, processes=processes, trained=trained
    )


def config_for(recipe: Recipe, data: Data) -> GPTConfig:
    """The model that a recipe makes for its data."""
    shape = recipe.model.shape()
    return GPTConfig(**shape, vocab_size=data.vocab_size, block_size=data.block_size)


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


def _new_model(recipe: Recipe, tuned: Tuning, run_device: RunDevice, ranks: Ranks) -> GPT:
    """The recipe's model, with the random weights of its seed and what is frozen."""
    config, lora = tuned.config, tuned.lora
    need = memory_need(config, recipe.train, run_device, ranks, tuned.trained())
    need.check(device.memory(run_device.device))
    torch.manual_seed(recipe.seed)
    linear = adapted(config, lora) if lora else plain_linear
    recompute, shared = recipe.train.recompute, recipe.train.shard and ranks.size > 1
    with need.explained():
        # Of a shared model each rank draws its part.
        with torch.device("meta") if shared else nullcontext():
            seed = None if shared else recipe.seed
            model = GPT(config, seed=seed, recompute=recompute, linear=linear)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not tuned.freezes(name))
    return model
