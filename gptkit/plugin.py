"""The extension contract: everything that a plugin imports from gptkit, besides `gptkit.codec`.

A plugin is a frozen pydantic model. Its fields are the recipe's options, the docstring below a
field is that option's help, its methods are its behaviour; run-time state is a private attribute.
A package announces a plugin by an entry point in `gptkit.datasets` or `gptkit.callbacks`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Strict
from torch import Tensor, nn

from gptkit.codec import Codec
from gptkit.data.download import cache_errors, cache_folder, cached, fetch
from gptkit.data.split import IGNORE, Split
from gptkit.data.token_file import TokenFile
from gptkit.errors import DataError, DownloadError, RunError, closest
from gptkit.files import digest, write_atomically

__all__ = [
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
"""The moments of training at which callbacks run, in the order of their first occurrence."""


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:  # "~name" of nobody
        raise ValueError(str(error)) from error


LocalPath = Annotated[Path, Strict(False), AfterValidator(_absolute)]
"""A path option: `~` is the user's home, and a relative path counts from the working directory."""


class Plugin(BaseModel):
    """Base of every plugin: frozen options, unknown ones and wrong types refused.

    What TOML has no type for, a tuple say, takes `Field(strict=False)`; paths are `LocalPath`.
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


@dataclass(frozen=True)
class Data:
    """A loaded data set: what training and sampling need to know of it."""

    train: Split
    val: Split
    codec: Codec
    vocab_size: int
    block_size: int
    sha256: str | None = None
    """Digest of the source, recorded with the run."""
    classes: tuple[str, ...] = ()
    """What the splits' labels mean, by number."""

    def __post_init__(self) -> None:
        for name, split in (("training", self.train), ("validation", self.val)):
            if len(split) < 1:
                raise DataError(
                    f"the {name} split holds not one window of {self.block_size} tokens",
                    hint="use more data or a smaller block_size",
                )


class Dataset(Plugin, ABC):
    """A source of training data; an entry point in `gptkit.datasets`."""

    @abstractmethod
    def load(self) -> Data:
        """Open the data, downloading or encoding it first where that was not done before.

        Raises:
            DataError: the data cannot be used; says which file and where in it.
            DownloadError: it cannot be fetched.
        """


@dataclass
class TrainState:
    """What callbacks see of a training run, and the few things they may change."""

    model: nn.Module
    """The model itself, without what compiles it or connects it with other processes; under
    `shard = true` its parameters are DTensors."""
    optimizer: torch.optim.Optimizer
    """Its groups carry `initial_lr`; a schedule sets `group["lr"]`."""
    codec: Codec
    """How tokens become text or pictures."""
    steps: int
    """Updates that the recipe asks for."""
    tokens_per_step: int
    """Target tokens per update, masked ones included."""
    run_dir: Path | None = None
    """The run folder; None where nothing is written, and on every rank but 0."""
    rank: int = 0
    """This process's number among those that train together; only 0 prints and writes."""
    step: int = 0
    """Updates done."""
    loss: Tensor = field(default_factory=lambda: torch.tensor(float("nan")))
    """Training loss of the latest batch, on the device: reading its value waits for the device."""
    val_loss: float | None = None
    """Loss of the latest evaluation, in nats per token."""
    grad_norm: Tensor | None = None
    """L2 norm of all gradients as backward left them, on the device. Whoever changes the gradients
    sets it anew, or to None: not known."""
    metrics: dict[str, float | Tensor] = field(default_factory=dict)
    """The latest values that callbacks recorded, by name, for loggers to pick up."""
    stop: bool = False
    """Set by a callback, on any rank, to end training after this step."""
    sample: Callable[[int, int], bytes] = lambda tokens, seed: b""
    """`sample(tokens, seed)` draws from the current weights, in the codec's format. It is called on
    every rank or on none: under `shard = true` each holds a part of the weights."""

    @property
    def tokens(self) -> int:
        """Target tokens seen so far."""
        return self.step * self.tokens_per_step


class Callback(Plugin):
    """A training habit; an entry point in `gptkit.callbacks`. Override the events it needs."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a method whose name looks like an event and is none: it would never be called."""
        for name in vars(cls):
            if name.startswith("on_") and name not in EVENTS:
                near = closest(name, EVENTS)
                advice = f'did you mean "{near}"?' if near else f"events: {', '.join(EVENTS)}"
                raise TypeError(f"{cls.__name__}.{name} is not an event; {advice}")

    def on_fit_start(self, state: TrainState) -> None:
        """Once, after a checkpoint was loaded: open files."""

    def on_step_start(self, state: TrainState) -> None:
        """Before the batch: set rates."""

    def on_backward_end(self, state: TrainState) -> None:
        """Gradients are complete, the weights not yet updated: clip."""

    def on_step_end(self, state: TrainState) -> None:
        """After the update: log, or stop early with `state.stop = True`."""

    def on_eval_end(self, state: TrainState) -> None:
        """After an evaluation; `state.val_loss` is fresh."""

    def on_fit_end(self, state: TrainState) -> None:
        """Once, always, also after an error or Ctrl-C: close files."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs back: JSON values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
