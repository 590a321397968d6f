"""Losses, gradients and weights that are not finite, found before they are saved or used."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptkit.errors import DivergedError
from gptkit.model.gpt import GPT, evaluating
from gptkit.sampling.decoded import LOADED, TRIED
from gptkit.training.distributed import ALONE, Ranks
from gptkit.training.sharding import full_tensor, local_tensor

TRAINING = (
    "this step was not saved. Try a lower train.optimizer.learning_rate, more warm-up or "
    "gradient clipping"
)
"""What to do while a model is trained."""


@dataclass(frozen=True)
class _PendingCheck:
    """A step's loss and gradient norm, being copied from the GPU."""

    step: int
    values: Tensor
    copied: torch.cuda.Event


class FiniteCheck:
    """Checks after every step that the loss and the gradients are finite.

    On a CPU the check happens at once, before the weights change. On a GPU it happens one step
    later, so that the host never waits for the step that it has just launched.

    Args:
        model: its gradients and weights are checked.
        ranks: the processes that train it; all of them call the same methods.
    """

    def __init__(self, model: nn.Module, ranks: Ranks = ALONE) -> None:
        self.model, self.ranks = model, ranks
        self._pending: _PendingCheck | None = None

    def after_step(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Check a step's loss and the norm of its gradients; on a GPU, those of the step before.

        Raises:
            DivergedError: names the step and what is not finite.
        """
        values = torch.stack((loss, norm.to(loss)))
        if values.is_cuda:
            previous, self._pending = self._pending, _start_copy(step, values)
            self._raise_if_not_finite(previous)
        elif not values.isfinite().all():
            raise _diverged(step, self._not_finite(loss))

    def before_save(self, step: int) -> None:
        """Check the pending step, then the weights.

        Raises:
            DivergedError: names the step and what is not finite.
        """
        previous, self._pending = self._pending, None
        self._raise_if_not_finite(previous)
        if self.ranks.any(not _has_finite_weights(self.model)):
            raise _diverged(step, ["a weight"])

    def _raise_if_not_finite(self, check: _PendingCheck | None) -> None:
        if check is None:
            return
        check.copied.synchronize()
        names = ("the loss", "the norm of the gradients")
        found = zip(names, check.values.tolist(), strict=True)
        if bad := [name for name, value in found if not math.isfinite(value)]:
            raise _diverged(check.step, bad)

    def _not_finite(self, loss: Tensor) -> list[str]:
        """The loss, if it is not finite, and the first such gradient."""
        named = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        bad = [f"the gradient of {n}" for n, g in named.items() if not _all_finite(g)]
        return ([] if loss.isfinite() else ["the loss"]) + bad[:1]


def check_loaded(model: GPT, place: str) -> None:
    """Refuse a loaded model whose weights or losses are not finite.

    Args:
        model: on its device.
        place: its checkpoint, for the error.

    Raises:
        DivergedError: names the place and what is not finite.
    """
    if not _has_finite_weights(model):
        raise DivergedError(f"{place}: a weight is not finite", hint=LOADED)
    try_model(model, place, hint=LOADED)


def try_model(model: GPT, place: str, *, hint: str = TRAINING) -> None:
    """Refuse a model whose loss of a few tokens is not finite.

    Weights that are finite but huge, as after an update that went wrong, give infinite products.
    Under `shard = true` all ranks must call this.

    Raises:
        DivergedError: names the place.
    """
    device, config = model.wte.weight.device, model.config
    tokens = torch.arange(min(config.block_size, TRIED), device=device)[None] % config.vocab_size
    with evaluating(model):
        require_finite(model(tokens, tokens).item(), f"{place}: the loss", hint=hint)


def require_finite(loss: float, what: str, *, hint: str = TRAINING) -> None:
    """Refuse a loss that is not finite.

    Raises:
        DivergedError: names it.
    """
    if not math.isfinite(loss):
        raise DivergedError(f"{what} is not finite", hint=hint)


def _has_finite_weights(model: nn.Module) -> bool:
    """Whether the weights, or this rank's part of them, are finite."""
    parts = map(local_tensor, model.parameters())
    largest = nn.utils.get_total_norm([part for part in parts if part.numel()], math.inf)
    return bool(largest.isfinite())


def _all_finite(tensor: Tensor) -> bool:
    return bool(full_tensor(tensor).isfinite().all())


def _start_copy(step: int, values: Tensor) -> _PendingCheck:
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    check = _PendingCheck(step, values.to("cpu", non_blocking=True), copied)  # into pinned memory
    # The current device need not be that of the values, such as cuda:1 in a process alone.
    copied.record(torch.cuda.current_stream(values.device))
    return check


def _diverged(step: int, bad: list[str]) -> DivergedError:
    what = " and ".join(bad) or "the norm of the gradients"
    return DivergedError(
        f"step {step}: {what} {'are' if len(bad) > 1 else 'is'} not finite", hint=TRAINING
    )
