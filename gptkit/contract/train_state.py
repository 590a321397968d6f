"""TrainState: what callbacks see of a training, and the little that they may change."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from gptkit.codec import Codec
from gptkit.contract.recorder import Recorder
from gptkit.data.split import Split
from gptkit.errors import PluginError

LABEL_SEPARATOR = "/"
"""Between the name of a parameter group and the labels that `split_groups` adds."""


class Sampler(Protocol):
    """Draws a sample from the current weights."""

    def __call__(self, tokens: int, seed: int, prompt: str = "") -> bytes:
        """The contents of a file, as the codec's `decode` writes it."""


class Evaluator(Protocol):
    """Measures the loss of the current weights."""

    def __call__(
        self, split: Literal["val", "train"] | Split = "val", *, batches: int | None = None
    ) -> float:
        """The mean loss in nats per token."""


def _no_sample(tokens: int, seed: int, prompt: str = "") -> bytes:
    return b""


def _no_loss(
    split: Literal["val", "train"] | Split = "val", *, batches: int | None = None
) -> float:
    return float("nan")


@dataclass
class TrainState:
    """The state of a training, for callbacks to read; they may set what is marked with (set).

    Attributes:
        model: The plain model, not compiled and not wrapped in DDP; under `shard = true` its
            parameters are DTensors.
        optimizer: Its `param_groups` carry `name`, `lr` and `initial_lr`; a schedule sets
            `group["lr"]`. See `split_groups`.
        codec: Turns tokens into text or images.
        steps: Updates in the whole training.
        batch_size: (set) Sequences per update, over all ranks. A value counts from the next batch
            that is read: set in `on_step_start` for this step, in a later event for the next one.
            Set the same on every rank, a multiple of their number. A checkpoint keeps it.
        block_size: Tokens of a sequence.
        recipe: The complete recipe as JSON values. Changing it changes nothing.
        run_dir: The run folder; None if nothing is written, and on all ranks but 0.
        rank: This process's number among those that train together; only 0 prints and writes.
        quiet: Whether the program that trains wants nothing to be shown.
        step: Updates done.
        tokens: Target tokens seen so far, masked ones included.
        loss: Training loss of the latest batch, on the device: `.item()` waits for the device.
        val_loss: Loss of the latest evaluation, in nats per token; None before the first one.
        val_losses: The losses of the further sets of weights at that evaluation, by their names;
            see `Callback.weights`.
        val_step: The step of the latest evaluation.
        grad_norm: (set) L2 norm of all gradients after backward, on the device. A callback that
            changes the gradients updates it, or sets it to None.
        metrics: (set) The latest values that callbacks recorded, by name; `record()` gives them to
            loggers.
        stop: (set) True, on any rank, ends training after the current step.
        checkpoint: The folder of the latest complete checkpoint; None if there is none, and on all
            ranks but 0. Read it in `on_save_end`: later it may be deleted at any time.
        error: Why training ends early, for `on_fit_end`: the exception, or a KeyboardInterrupt
            after a signal. None if it ends as planned or by `stop`.
        sample: `sample(tokens, seed, prompt="")` draws from the current weights, in the codec's
            format. Call it on all ranks or on none: under `shard = true` each rank holds a part of
            the weights.
        evaluate: `evaluate("val" | "train" | a Split, batches=None)` is the loss of the current
            weights in nats per token, over the whole split or `batches` batches, spread evenly
            over it. Call it on all ranks or on none.
        recorder: Makes what `record()` returns; the trainer starts and stops its clock. A logger
            that has kept the seconds of earlier processes sets `recorder.earlier`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    codec: Codec
    steps: int
    batch_size: int
    block_size: int
    recipe: Mapping[str, Any] = field(default_factory=dict)
    run_dir: Path | None = None
    rank: int = 0
    quiet: bool = False
    step: int = 0
    tokens: int = 0
    loss: Tensor = field(default_factory=lambda: torch.tensor(float("nan")))
    val_loss: float | None = None
    val_losses: dict[str, float] = field(default_factory=dict)
    val_step: int | None = None
    grad_norm: Tensor | None = None
    metrics: dict[str, float | Tensor] = field(default_factory=dict)
    stop: bool = False
    checkpoint: Path | None = None
    error: BaseException | None = None
    sample: Sampler = _no_sample
    evaluate: Evaluator = _no_loss
    recorder: Recorder = field(default_factory=Recorder, repr=False)

    @property
    def tokens_per_step(self) -> int:
        """Target tokens per update, masked ones included."""
        return self.batch_size * self.block_size

    def record(self) -> dict[str, float]:
        """What is logged at a step, under the same names in every tracker.

        `step`, `loss`, `lr`, everything in `metrics`, `tokens`, `tokens_per_second` since the
        record before it (without evaluating and saving), `elapsed` in seconds since training began,
        `mfu`, the share of the device's peak FLOP/s that the model needed, and `memory_mb`, the
        most memory so far (of the process, or of tensors on a GPU); after an evaluation of this
        step also `val_loss`, and `val_loss_NAME` of every further set of weights. While a step is
        under way, as after an error, they are those of the latest complete step. Call it when a
        line is due: it waits for the device. It measures once per step, however many callbacks ask.
        """
        record = self.recorder.record(self._values())
        if self.val_loss is not None and self.val_step == record["step"]:
            record["val_loss"] = self.val_loss
            record |= {f"val_loss_{name}": loss for name, loss in self.val_losses.items()}
        return record

    def begin_step(self) -> None:
        """Keep what is logged of the step before, and start the clock; for the trainer."""
        self.recorder.start(self._values())

    def split_groups(self, label_of: Callable[[str], str | int]) -> None:
        """Split the optimizer's parameter groups by a label of each parameter's name.

        The group "decayed" becomes "decayed/LABEL" for every label in it, with the same numbers;
        then set `lr`, `initial_lr` and what else shall differ. A second call changes nothing, and
        a resumed run gets the groups of its checkpoint back, so call it in `on_fit_start`.

        Args:
            label_of: the label of a name such as "wte.weight" or "h.0.attn.qkv.weight", a text or
                a whole number.

        Raises:
            PluginError: a label is neither.
        """
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        groups = []
        for group in self.optimizer.param_groups:
            parts: dict[str, list[Tensor]] = {}
            for parameter in group["params"]:
                label = _label(label_of(names[parameter]), names[parameter])
                parts.setdefault(label, []).append(parameter)
            groups += [group | {"name": _part_name(group, p), "params": parts[p]} for p in parts]
        self.optimizer.param_groups[:] = groups

    def _values(self) -> dict[str, float | Tensor]:
        rate = self.optimizer.param_groups[0]["lr"]
        first = {"step": self.step, "loss": self.loss, "lr": rate}
        return first | self.metrics | {"tokens": self.tokens}


def _label(label: object, name: str) -> str:
    if type(label) not in (str, int):
        raise PluginError(
            f"split_groups: the label of {name} is {label!r}", hint="a label is a text or an int"
        )
    return str(label)


def _part_name(group: Mapping[str, Any], label: str) -> str:
    """The name of a part of a group; the same if the group has that label already."""
    first, *labels = str(group.get("name", "group")).split(LABEL_SEPARATOR)
    return LABEL_SEPARATOR.join([first, *labels, *([label] if label not in labels else [])])


def check_batch_size(batch_size: object) -> None:
    """Refuse a batch size that no batch can have.

    Raises:
        PluginError: it is no whole number above 0.
    """
    if type(batch_size) is not int or batch_size < 1:
        raise PluginError(
            f"state.batch_size should be a whole number above 0, a callback set it to "
            f"{batch_size!r}",
            hint="// divides without a remainder, max(1, ...) keeps it above 0",
        )
