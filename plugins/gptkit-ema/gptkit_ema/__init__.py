"""An exponential moving average of the weights (Polyak & Juditsky 1992)."""

from collections.abc import Mapping

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gptkit.plugin import Callback, TrainState

__all__ = ["EMA"]


class EMA(Callback):
    """Keep a moving average of the weights, which often has a lower loss than the weights.

    It is evaluated and saved with the model; `--weights ema` samples, evaluates and exports it. It
    needs as much memory as the weights.
    """

    contract = 1

    decay: float = Field(default=0.999, ge=0, lt=1)
    """Share of the average that a step keeps; about 1 / (1 - decay) steps count. It is smaller in
    the first steps, so that the untrained weights are soon forgotten."""
    name: str = Field(default="ema", pattern=r"^[a-z0-9_-]+$")
    """Name of the average, for files and `--weights`; two averages need two names."""

    _average: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    def on_fit_start(self, state: TrainState) -> None:
        """Begin with the weights, unless a resumed run has brought the average back."""
        trained = _trained(state)
        if state.step == 0 or not self._average:  # a program may train with it a second time
            self._average = {name: weight.detach().clone() for name, weight in trained.items()}
        self._average = {name: self._average[name] for name in trained}

    @torch.no_grad()
    def on_step_end(self, state: TrainState) -> None:
        """Move the average towards the new weights."""
        named = _trained(state)
        averages = [_local(self._average[name]) for name in named]
        weights = [_local(weight) for weight in named.values()]
        update = get_ema_multi_avg_fn(self.decay_at(state.step))  # type: ignore[no-untyped-call]
        update(averages, weights, state.step)

    def decay_at(self, step: int) -> float:
        """The share of the average that the update of a step keeps, the first being step 1."""
        return min(self.decay, step / (step + 9))

    def weights(self) -> Mapping[str, Mapping[str, Tensor]] | None:
        """The average of what is trained, by parameter, under its name."""
        return {self.name: self._average} if self._average else None

    def load_weights(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Continue with an average that was saved, perhaps under another name."""
        (average,) = weights.values()
        self._average = {name: weight.clone().float() for name, weight in average.items()}


def _trained(state: TrainState) -> dict[str, Tensor]:
    """The parameters that are not frozen, by name."""
    named = state.model.named_parameters()
    return {name: weight for name, weight in named if weight.requires_grad}


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor (DTensor); any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
