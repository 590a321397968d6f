"""The plugin contract: everything that a plugin imports from gptkit, besides `gptkit.codec`.

A plugin is a frozen pydantic model. Its fields are the recipe's options, the docstring below a
field is that option's help, its methods are its behaviour; run-time state is a private attribute.
Its class declares the contract that it is written for: `contract = 1`.
A package announces a plugin by an entry point in `gptkit.datasets` or `gptkit.callbacks`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Strict
from torch import Tensor, nn

from gptkit.codec import CONTRACT, Codec
from gptkit.data.download import cache_errors, cache_folder, cached, fetch
from gptkit.data.split import IGNORE, Split
from gptkit.data.token_file import TokenFile
from gptkit.errors import DataError, DownloadError, RunError, closest
from gptkit.files import digest, lock, staged, write_atomically
from gptkit.recorder import Recorder

__all__ = [
    "CONTRACT",
    "EVENTS",
    "IGNORE",
    "Callback",
    "Data",
    "DataError",
    "Dataset",
    "DownloadError",
    "LocalPath",
    "Plugin",
    "RunError",
    "Split",
    "TokenFile",
    "TrainState",
    "cache_errors",
    "cache_folder",
    "cached",
    "digest",
    "fetch",
    "lock",
    "staged",
    "write_atomically",
]

EVENTS = (
    "on_fit_start",
    "on_step_start",
    "on_backward_end",
    "on_step_end",
    "on_eval_end",
    "on_fit_end",
)
"""The events of training at which callbacks run, in the order in which they first occur."""


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:  # "~name" of an unknown user
        raise ValueError(str(error)) from error


LocalPath = Annotated[Path, Strict(False), AfterValidator(_absolute)]
"""A path option: `~` is the user's home, a relative path is below the working
directory."""


class Plugin(BaseModel):
    """Base of every plugin. Options are frozen; unknown ones and wrong types are refused.

    A type that TOML lacks, such as a tuple, needs `Field(strict=False)`; paths are `LocalPath`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        ser_json_inf_nan="constants",
        use_attribute_docstrings=True,
        validate_default=True,
        arbitrary_types_allowed=True,
    )

    contract: ClassVar[int]
    """The version of the plugin contract that the plugin is written for: `contract = 1`."""


@dataclass(frozen=True)
class Data:
    """A loaded data set: everything that training and sampling need."""

    train: Split
    val: Split
    codec: Codec
    vocab_size: int
    block_size: int
    sha256: str | None = None
    """Digest of the source, recorded with the run."""
    classes: tuple[str, ...] = ()
    """Names of the classes, by label."""

    def __post_init__(self) -> None:
        for name, split in (("training", self.train), ("validation", self.val)):
            if len(split) < 1:
                raise DataError(
                    f"the {name} split is shorter than one window of {self.block_size} tokens",
                    hint="use more data or a smaller block_size",
                )


class Dataset(Plugin, ABC):
    """A source of training data; an entry point in `gptkit.datasets`."""

    @abstractmethod
    def load(self) -> Data:
        """Open the data; download or encode it first if that was not done before.

        Raises:
            DataError: the data cannot be used; names the file and the place in it.
            DownloadError: it cannot be downloaded.
        """


@dataclass
class TrainState:
    """The state of a training, for callbacks to read; a few fields are for them to change."""

    model: nn.Module
    """The plain model, not compiled and not wrapped in DDP; under `shard = true` its parameters are
    DTensors."""
    optimizer: torch.optim.Optimizer
    """Its groups carry `initial_lr`; a schedule sets `group["lr"]`."""
    codec: Codec
    """Turns tokens into text or images."""
    steps: int
    """Updates in the whole training, from the recipe."""
    tokens_per_step: int
    """Target tokens per update, masked ones included."""
    run_dir: Path | None = None
    """The run folder; None if nothing is written, and on all ranks but 0."""
    rank: int = 0
    """This process's number among those that train together; only 0 prints and writes."""
    step: int = 0
    """Updates done."""
    loss: Tensor = field(default_factory=lambda: torch.tensor(float("nan")))
    """Training loss of the latest batch, on the device: `.item()` waits for the device."""
    val_loss: float | None = None
    """Loss of the latest evaluation, in nats per token."""
    val_step: int | None = None
    """The step of the latest evaluation."""
    grad_norm: Tensor | None = None
    """L2 norm of all gradients after backward, on the device. A callback that changes the gradients
    updates it, or sets it to None."""
    metrics: dict[str, float | Tensor] = field(default_factory=dict)
    """The latest values that callbacks recorded, by name; `record()` gives them to loggers."""
    stop: bool = False
    """A callback sets this, on any rank, to end training after the current step."""
    sample: Callable[[int, int], bytes] = lambda tokens, seed: b""
    """`sample(tokens, seed)` draws from the current weights, in the codec's format. Call it on all
    ranks or on none: under `shard = true` each rank holds a part of the weights."""
    recorder: Recorder = field(default_factory=Recorder, repr=False)
    """Makes what `record()` returns; the trainer starts and stops its clock."""

    @property
    def tokens(self) -> int:
        """Target tokens seen so far."""
        return self.step * self.tokens_per_step

    def record(self) -> dict[str, float]:
        """What is logged at a step, under the same names in every tracker.

        `step`, `loss`, `lr`, everything in `metrics`, `tokens`, `tokens_per_second` since the
        record before it (without evaluating and saving), `elapsed` in seconds since training began;
        after an evaluation of this step also `val_loss`. While a step is under way, as after an
        error, they are those of the latest complete step. Call it when a line is due: it waits for
        the device. It measures once per step, however many callbacks ask.
        """
        record = self.recorder.record(self._values())
        if self.val_loss is not None and self.val_step == record["step"]:
            record["val_loss"] = self.val_loss
        return record

    def begin_step(self) -> None:
        """Keep what is logged of the step before, and start the clock; for the trainer."""
        self.recorder.start(self._values())

    def _values(self) -> dict[str, float | Tensor]:
        rate = self.optimizer.param_groups[0]["lr"]
        first = {"step": self.step, "loss": self.loss, "lr": rate}
        return first | self.metrics | {"tokens": self.tokens}


class Callback(Plugin):
    """Code that runs at events of a training; an entry point in `gptkit.callbacks`.

    Override the events that it needs.
    """

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a method named like an event that does not exist: it would never be called."""
        for name in vars(cls):
            if name.startswith("on_") and name not in EVENTS:
                near = closest(name, EVENTS)
                advice = f'did you mean "{near}"?' if near else f"events: {', '.join(EVENTS)}"
                raise TypeError(f"{cls.__name__}.{name} is not an event; {advice}")

    def on_fit_start(self, state: TrainState) -> None:
        """Once, before the first step; a resumed run has loaded its checkpoint: open files."""

    def on_step_start(self, state: TrainState) -> None:
        """Before the batch: set rates."""

    def on_backward_end(self, state: TrainState) -> None:
        """Gradients are complete, the weights not yet updated: clip."""

    def on_step_end(self, state: TrainState) -> None:
        """After the update: log, or stop early with `state.stop = True`."""

    def on_eval_end(self, state: TrainState) -> None:
        """After an evaluation, which has set `state.val_loss`."""

    def on_fit_end(self, state: TrainState) -> None:
        """Once, always, also after an error or Ctrl-C: close files."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: JSON values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
