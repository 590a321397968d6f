"""State: what the file `state.json` of a step folder says."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from gptkit.recipe.codec_record import CodecRecord
from gptkit.recipe.options import GPTConfig

FORMAT: Literal[2] = 2
"""Increased whenever an older gptkit could not read what a newer one writes. Format 1 is read, too:
its callbacks and parameter groups have positions instead of names."""


class State(BaseModel):
    """The contents of `state.json`, in which `Infinity` and `NaN` are numbers, too."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    format: Literal[1, 2] = FORMAT
    gptkit: str
    """The version that wrote it."""
    config: GPTConfig
    dataset: str
    codec: CodecRecord
    step: NonNegativeInt
    tokens: NonNegativeInt | None = None
    """Target tokens seen; None in format 1."""
    batch_size: PositiveInt | None = None
    """Sequences per update, if a callback changed it."""
    val_loss: float | None
    """Of the latest evaluation, in nats per token."""
    val_losses: dict[str, float] = {}
    """Of the further sets of weights at that evaluation, by name."""
    val_step: NonNegativeInt | None
    """The step of the latest evaluation."""
    optimizer_groups: list[dict[str, Any]]
    """Optimizer, numbers and parameter names of every group; in format 1 the numbers alone."""
    first_groups: list[dict[str, Any]] = []
    """Likewise, after `on_fit_start` when the run began."""
    callbacks: dict[str, dict[str, Any]] | list[dict[str, Any]]
    """JSON values that callbacks keep, by name; in format 1 in the recipe's order. A tensor in
    `callbacks.safetensors` is null here; its key there is its path, such as `ema/wte.weight`."""
    weights: dict[str, str] = {}
    """The callback that offered each further set of weights, by the set's name."""
    sha256: dict[str, str] = {}
    """Digest by file name."""
