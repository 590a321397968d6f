"""Gradient clipping by global norm (Pascanu et al. 2013)."""

from collections.abc import Iterable

import torch
from pydantic import PositiveFloat
from torch import Tensor

from gptkit.plugin import Callback, TrainState

__all__ = ["GradClip"]


class GradClip(Callback):
    """Scale the gradients down if their global norm is larger than a bound."""

    contract = 1

    max_norm: PositiveFloat = 1.0
    """Largest L2 norm of all gradients together; inf records the norm without clipping."""

    def on_backward_end(self, state: TrainState) -> None:
        """Clip; record the norm before clipping as `grad_norm`."""
        parameters = list(state.model.parameters())
        norm = state.grad_norm if state.grad_norm is not None else global_norm(parameters)
        torch.nn.utils.clip_grads_with_norm_(parameters, self.max_norm, norm)
        state.grad_norm = None  # no longer known, since the gradients have changed
        state.metrics["grad_norm"] = norm  # stays on the device: .item() here would stall it


def global_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The L2 norm of all gradients together."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if hasattr(norm, "full_tensor"):  # sharded (DTensor): each rank holds a part of the norm
        norm = norm.full_tensor()
    return norm
