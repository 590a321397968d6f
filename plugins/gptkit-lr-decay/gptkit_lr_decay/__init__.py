"""The learning rate over time: a linear warmup, then a decay to a fraction of the base rate."""

import math
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, model_validator

from gptkit.plugin import Callback, TrainState

__all__ = ["LRDecay"]

REMOVED = {
    "warmup_tokens": "use warmup_steps: the tokens divided by batch_size * block_size",
    "decay_tokens": "the decay ends with the recipe's last step",
    "decay_steps": "the decay ends with the recipe's last step",
}
"""Options that 0.1 had, and what to do without them."""


class LRDecay(Callback):
    """Warm up linearly, then decay to a fraction of the base rate.

    The rate is a pure function of the step, so a resumed run has nothing to restore. The cosine is
    that of Loshchilov & Hutter 2017 without restarts, the trapezoid that of Hägele et al. 2024.
    """

    contract = 1

    warmup_steps: NonNegativeInt = 100
    """Steps of linear warmup before the decay begins."""
    decay: Literal["cosine", "linear", "trapezoid"] = "cosine"
    """Shape after the warmup; a trapezoid keeps the base rate until its final slope."""
    cooldown: float = Field(default=0.4, ge=0.0, le=1.0)
    """Share of training that the trapezoid's final slope takes."""
    final_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """Fraction of the base rate at the end of training."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_removed(cls, options: Any) -> Any:
        for name, advice in REMOVED.items():
            if isinstance(options, dict) and options.get(name) is not None:
                raise ValueError(f"{name} was removed in 0.2; {advice}")
        return options

    def on_step_start(self, state: TrainState) -> None:
        """Set the rate of every parameter group; record the first group's as `lr`."""
        factor = self.factor(state.step, state.steps)
        for group in state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        state.metrics["lr"] = state.optimizer.param_groups[0]["lr"]

    def factor(self, step: int, steps: int) -> float:
        """Fraction of the base rate for the update that follows `step` updates.

        Args:
            step: updates done, from 0.
            steps: updates that the recipe asks for.

        Returns:
            (step + 1) / warmup_steps during the warmup, which may be longer than training; then the
            decay; `final_fraction` once all steps are done.
        """
        warmup = self.warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        if step >= steps:
            return self.final_fraction
        start = max(warmup, steps * (1 - self.cooldown)) if self.decay == "trapezoid" else warmup
        if step <= start:
            return 1.0
        progress = (step - start) / (steps - start)
        fall = (1 - math.cos(math.pi * progress)) / 2 if self.decay == "cosine" else progress
        return 1 - (1 - self.final_fraction) * fall
