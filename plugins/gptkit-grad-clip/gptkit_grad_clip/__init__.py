"""Gradient clipping by global norm (Pascanu et al. 2013)."""

import torch
from pydantic import PositiveFloat

from gptkit.plugin import Callback, TrainState

__all__ = ["GradClip"]


class GradClip(Callback):
    """Scale the gradients down where their global norm exceeds a bound."""

    max_norm: PositiveFloat = 1.0
    """Largest L2 norm of all gradients together; inf only records the norm."""

    def on_backward_end(self, state: TrainState) -> None:
        """Clip; record the norm before clipping as `grad_norm`."""
        # One fused pass over all gradients (foreach) wherever the device and tensor type have it.
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), self.max_norm)
        if hasattr(norm, "full_tensor"):  # sharded (DTensor): each rank holds a part of the norm
            norm = norm.full_tensor()
        state.metrics["grad_norm"] = norm  # stays on the device: .item() here would stall it
