"""Losses, gradients and weights that are not finite: found before anything is written of them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptkit.errors import DivergedError
from gptkit.training.sharding import full_tensor


@dataclass(frozen=True)
class _PendingCheck:
    """A step's loss and gradient norm on their way from the GPU."""

    step: int
    values: Tensor
    arrived: torch.cuda.Event


class FiniteCheck:
    """Looks at every step whether the loss and the gradients are finite.

    On a CPU it looks at once, before the weights are touched. On a GPU it looks a step later, so
    that the host never waits for the device to finish the step that it has just been given.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._pending: _PendingCheck | None = None

    def after_step(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Judge a step by its loss and the norm of its gradients, here or at the next call.

        Raises:
            DivergedError: names the step and what is not finite.
        """
        values = torch.stack((loss, norm.to(loss)))
        if values.is_cuda:
            previous, self._pending = self._pending, _send(step, values)
            self._raise_if_not_finite(previous)
        elif not values.isfinite().all():
            raise _diverged(step, self._bad(loss))

    def before_save(self, step: int) -> None:
        """Judge what is not judged yet, and the weights that came of it, before they are used.

        Raises:
            DivergedError: names the step and what is not finite.
        """
        previous, self._pending = self._pending, None
        self._raise_if_not_finite(previous)
        largest = nn.utils.get_total_norm(self.model.parameters(), math.inf)
        if not full_tensor(largest).isfinite():
            raise _diverged(step, ["a weight"])

    def _raise_if_not_finite(self, copy: _PendingCheck | None) -> None:
        if copy is None:
            return
        copy.arrived.synchronize()
        names = ("the loss", "the norm of the gradients")
        found = zip(names, copy.values.tolist(), strict=True)
        if bad := [name for name, value in found if not math.isfinite(value)]:
            raise _diverged(copy.step, bad)

    def _bad(self, loss: Tensor) -> list[str]:
        named = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        bad = [
            f"the gradient of {n}" for n, g in named.items() if not full_tensor(g).isfinite().all()
        ]
        return ([] if loss.isfinite() else ["the loss"]) + bad[:1]


def _send(step: int, values: Tensor) -> _PendingCheck:
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copy = _PendingCheck(step, values.to("cpu", non_blocking=True), arrived)  # into pinned memory
    arrived.record()
    return copy


def _diverged(step: int, bad: list[str]) -> DivergedError:
    what = " and ".join(bad) or "the norm of the gradients"
    return DivergedError(
        f"step {step}: {what} {'are' if len(bad) > 1 else 'is'} not finite",
        hint="nothing of it was saved. Try a lower train.learning_rate, more warm-up or the "
        "grad-clip callback",
    )
