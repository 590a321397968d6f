"""What a recipe's training will take: parameters, FLOPs, tokens, memory, time."""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from time import perf_counter

from gptkit.data.progress import progress
from gptkit.model.gpt import GPT
from gptkit.plugin import Data
from gptkit.recipe import sizes, training_memory, tuning
from gptkit.recipe.build import Plugins
from gptkit.recipe.options import GPTConfig, TrainOptions
from gptkit.recipe.sizes import Trained
from gptkit.runs.setup import build_trainer, choose_device, config_for
from gptkit.training import allocator, device
from gptkit.training.device import RunDevice
from gptkit.training.distributed import ALONE
from gptkit.training.optimizer import make_optimizer
from gptkit.training.steps import total_steps
from gptkit.training.trainer import Trainer
from gptkit.training.usage import Usage

ENOUGH = 20
"""Tokens per parameter that train a model of a size best (Hoffmann et al. 2022)."""
TRIAL = 3
"""Steps; the first one, which also makes the moments, is not timed."""
USABLE = 0.95
"""The share of the memory that a training may take."""
MOST_ROWS = 1 << 20
"""Sequences that are looked at for the largest batch."""


@dataclass(frozen=True)
class Variant:
    """A way to train the recipe, and the memory of each process at its peak."""

    change: str
    peak: int
    """Bytes."""


@dataclass(frozen=True)
class Trial:
    """What a few real steps took."""

    seconds: float
    """Of a step."""
    peak: int | None
    """Bytes; None if that cannot be known."""
    mfu: float
    """Share of the device's peak speed."""
    largest: int
    """Sequences that fit into memory at once."""


@dataclass(frozen=True)
class Plan:
    """What a recipe's training will take on this machine."""

    config: GPTConfig
    options: TrainOptions
    trained: Trained
    run_device: RunDevice
    steps: int
    base: int
    """Bytes of the process, or on the GPU, without a model."""
    memory: int | None
    """Bytes that there are; None if that is not known."""
    variants: tuple[Variant, ...]
    """The recipe as it is first."""
    trial: Trial | None
    """None if the training does not fit."""

    @property
    def tokens(self) -> int:
        """Target tokens of the whole training."""
        return self.steps * self.options.batch_size * self.config.block_size

    @property
    def tokens_per_parameter(self) -> float:
        """Of the whole training; `ENOUGH` is a good number."""
        return self.tokens / sizes.n_parameters(self.config)

    @property
    def steps_for_enough(self) -> int:
        """Steps after which there were `ENOUGH` tokens per parameter."""
        wanted = ENOUGH * sizes.n_parameters(self.config)
        return math.ceil(wanted / (self.options.batch_size * self.config.block_size))

    @property
    def peak(self) -> int:
        """Bytes at the peak of the recipe as it is, from its sizes."""
        return self.variants[0].peak


def make_plan(plugins: Plugins) -> Plan:
    """Plan a recipe's training in one process; loads its data and tries a few steps.

    The recipe's callbacks are left out: what they keep, such as an average of the weights, comes
    on top, and so does the copy from which a checkpoint is written.

    Raises:
        GptkitError: the device is missing, or the data cannot be loaded.
    """
    options, run_device = plugins.recipe.train, choose_device(plugins.recipe, ALONE)
    data = plugins.load_data()
    config = config_for(plugins.recipe, data)
    trained = tuning.find(plugins.recipe.model, plugins.recipe.lora, config).trained()
    base = _base(config, options, run_device)
    there = device.memory(run_device.device)
    trial = None
    if there is None or _predict(config, options, run_device, base, trained) <= USABLE * there:
        trial = _try(plugins, data, run_device, trained, base=base, there=there)
    variants = _variants(config, options, run_device, base, trained)
    windows, stride = len(data.train), data.train.stride
    steps = total_steps(options, block_size=data.block_size, windows=windows, stride=stride)
    return Plan(config, options, trained, run_device, steps, base, there, variants, trial)


def _base(config: GPTConfig, options: TrainOptions, run_device: RunDevice) -> int:
    """Bytes that are taken after a step of a tiny model, which imports and allocates the rest."""
    tiny = {
        **dict.fromkeys(("n_layer", "n_head", "n_kv_head"), 1),
        **dict.fromkeys(("n_embd", "n_inner", "head_dim"), 8),
        "preset": None,
    }
    sizes_of_data = {"vocab_size": 2, "block_size": 2}
    model = GPT(
        GPTConfig.model_validate(config.model_dump() | tiny | sizes_of_data),
        recompute=options.recompute,
    ).to(run_device.device)
    optimizer = make_optimizer(model, options.optimizer)
    tokens = model.wte.weight.new_zeros(1, 2).long()
    with run_device.autocast(cache=False):
        loss = model(tokens, tokens)
    loss.backward()
    optimizer.step()
    return _taken(run_device)


def _taken(run_device: RunDevice) -> int:
    """Bytes that are taken now."""
    device.forget_peak(run_device.device)
    return device.peak_memory(run_device.device) or 0


def _variants(
    config: GPTConfig, options: TrainOptions, run_device: RunDevice, base: int, trained: Trained
) -> tuple[Variant, ...]:
    """The recipe as it is, and with each of the options that change its memory."""
    rows = min(options.micro_batch_size or options.batch_size, options.batch_size)
    changes: dict[str, dict[str, object]] = {"": {}}
    for fewer in dict.fromkeys((rows // 2, 1)):
        if 0 < fewer < rows and options.batch_size % fewer == 0:
            changes[f"micro_batch_size = {fewer}"] = {"micro_batch_size": fewer}
    changed = {change: options.model_copy(update=update) for change, update in changes.items()}
    found = [
        Variant(change, _predict(config, each, run_device, base, trained))
        for change, each in changed.items()
    ]
    other = options.model_copy(update={"recompute": not options.recompute})
    before = _taken(run_device)
    imports = _base(config, other, run_device) - before  # of torch's part that recomputes
    peak = _predict(config, other, run_device, base + max(0, imports), trained)
    found.insert(1, Variant(f"recompute = {str(other.recompute).lower()}", peak))
    sharded = options.model_copy(update={"shard": True})
    for processes in (2, 8):
        if options.batch_size % processes == 0:
            peak = _predict(config, sharded, run_device, base, trained, processes=processes)
            found.append(Variant(f"shard = true, {processes} processes", peak))
    return tuple(found)


def _predict(
    config: GPTConfig,
    options: TrainOptions,
    run_device: RunDevice,
    base: int,
    trained: Trained,
    *,
    processes: int = 1,
    rows: int | None = None,
) -> int:
    """Bytes of a process at its peak."""
    how = training_memory.setting(
        options,
        item_size=run_device.dtype.itemsize,
        processes=processes,
        rows=rows,
        on_gpu=run_device.device.type != "cpu",
    )
    return training_memory.process_peak(config, options, how, base=base, trained=trained)


def _try(
    plugins: Plugins,
    data: Data,
    run_device: RunDevice,
    trained: Trained,
    *,
    base: int,
    there: int | None,
) -> Trial:
    """Train a few steps that nobody sees or keeps."""
    device.forget_peak(run_device.device)
    trainer = build_trainer(replace(plugins, callbacks={}), data, run_device=run_device)
    with closing(trainer.reader), allocator.for_training(run_device.device, sharded=False):
        with progress("trying the recipe", total=TRIAL, unit="steps") as advance:
            seconds = min([_seconds(trainer, advance) for _ in range(TRIAL)][1:])
        peak = device.peak_memory(run_device.device)
    config, options = trainer.model.config, trainer.options

    def predict(rows: int | None = None) -> int:
        return _predict(config, options, run_device, base, trained, rows=rows) - base

    scale = 1.0 if peak is None else max(1.0, (peak - base) / predict())
    usage = Usage(config, run_device, trained=trained)
    return Trial(
        seconds=seconds,
        peak=peak,
        mfu=usage.share(trainer.state.tokens_per_step / seconds),
        largest=_largest(lambda rows: base + scale * predict(rows), USABLE * (there or math.inf)),
    )


def _seconds(trainer: Trainer, advance: Callable[[int], None]) -> float:
    """Of a step, which is then shown as done."""
    begin = perf_counter()
    trainer.step()
    trainer.state.loss.item()  # waits for a GPU
    seconds = perf_counter() - begin
    advance(1)
    return seconds


def _largest(peak: Callable[[int], float], limit: float) -> int:
    """The most sequences whose peak is within the limit; 0 if a single one is not."""
    fits, too_many = 0, MOST_ROWS + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if peak(middle) <= limit else (fits, middle)
    return fits
