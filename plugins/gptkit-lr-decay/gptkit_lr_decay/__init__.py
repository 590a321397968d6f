"""The learning rate over time: a linear warmup, then a decay to a fraction of the base rate."""

import math
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from gptkit.plugin import Callback, TrainState

__all__ = ["LRDecay"]


class LRDecay(Callback):
    """Warm up linearly, then decay to a fraction of the base rate.

    The rate is a pure function of the step, so a resumed run has nothing to restore. The cosine is
    that of Loshchilov & Hutter 2017 without restarts, the trapezoid that of Hägele et al. 2024.
    """

    warmup_steps: NonNegativeInt = 100
    """Steps of linear warmup before the decay begins."""
    decay: Literal["cosine", "linear", "trapezoid"] = "cosine"
    """Shape after the warmup; trapezoid stays at the base rate until its final slope."""
    cooldown: float = Field(default=0.4, ge=0.0, le=1.0)
    """Share of training that the trapezoid's final slope takes."""
    final_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """Fraction of the base rate that is left at the end."""
    decay_steps: PositiveInt | None = None
    """Step at which the decay ends; unset: the recipe's steps."""
    warmup_tokens: PositiveInt | None = None
    """Length of the warmup in tokens, in place of warmup_steps."""
    decay_tokens: PositiveInt | None = None
    """Tokens after which the decay ends, in place of decay_steps."""

    @model_validator(mode="after")
    def _check_units(self) -> Self:
        # A run's recipe.toml spells out every default, so only another value is a contradiction.
        default = type(self).model_fields["warmup_steps"].default
        if self.warmup_tokens and self.warmup_steps != default:
            raise ValueError("should set warmup_steps or warmup_tokens, got both")
        if self.decay_tokens and self.decay_steps:
            raise ValueError("should set decay_steps or decay_tokens, got both")
        return self

    def on_step_start(self, state: TrainState) -> None:
        """Set every group's rate for the update to come; record the first one as `lr`."""
        factor = self.factor(state.step, state.steps, tokens_per_step=state.tokens_per_step)
        for group in state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        state.metrics["lr"] = state.optimizer.param_groups[0]["lr"]

    def factor(self, step: int, steps: int, *, tokens_per_step: int = 1) -> float:
        """Fraction of the base rate for the update that follows `step` updates.

        Args:
            step: updates done, from 0.
            steps: updates that the recipe asks for.
            tokens_per_step: turns the options in tokens into steps.

        Returns:
            (step + 1) / warmup during the warmup, even one longer than training; then the decay;
            `final_fraction` from the end of the decay on.
        """
        warmup, end = self._bounds(steps, tokens_per_step)
        if step < warmup:
            return min(1.0, (step + 1) / warmup)
        if step >= end:
            return self.final_fraction
        start = max(warmup, end * (1 - self.cooldown)) if self.decay == "trapezoid" else warmup
        if step <= start:
            return 1.0
        progress = (step - start) / (end - start)
        fall = (1 - math.cos(math.pi * progress)) / 2 if self.decay == "cosine" else progress
        return 1 - (1 - self.final_fraction) * fall

    def _bounds(self, steps: int, tokens_per_step: int) -> tuple[float, float]:
        """Where the warmup and the decay end, in steps; fractional where given in tokens."""
        warmup: float = self.warmup_steps
        if self.warmup_tokens:
            warmup = self.warmup_tokens / tokens_per_step
        end: float = self.decay_steps or steps
        if self.decay_tokens:
            end = self.decay_tokens / tokens_per_step
        return warmup, end
