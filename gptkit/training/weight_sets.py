"""Further sets of weights that callbacks offer, such as averages: checked, swapped in, restored."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gptkit.errors import PluginError
from gptkit.model.gpt import GPT
from gptkit.plugin import TrainState
from gptkit.training.callbacks import Callbacks
from gptkit.training.sharding import shard_like

RESERVED = ("model", "optimizer", "callbacks")
"""Names of other files of a checkpoint."""


@dataclass(frozen=True)
class WeightSet:
    """A set of weights for the model, and the callback that offers it."""

    callback: str
    tensors: Mapping[str, Tensor]


def collect(callbacks: Callbacks, model: GPT, state: TrainState) -> dict[str, WeightSet]:
    """The sets of weights that the callbacks offer now, by name; what is frozen is the model's own.

    Raises:
        PluginError: a name is taken or not allowed, or the tensors are not those of the model.
    """
    sets: dict[str, WeightSet] = {}
    for callback in callbacks:
        with callbacks.blaming(callback, "weights", state):
            place = f"{callbacks.label(callback)}: weights()"
            for name, tensors in _offered(callbacks[callback].weights(), place).items():
                _check_name(name, place, sets, callbacks)
                _check_tensors(tensors, model, f"{place}[{name!r}]")
                sets[name] = WeightSet(callback, {**tensors, **_frozen(model)})
    return sets


@contextmanager
def swapped(model: GPT, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with other weights; it has its own again at the end, bit for bit."""
    own = {name: parameter.detach().clone() for name, parameter in model.weights().items()}
    model.load_weights(like_parameters(tensors, model))
    try:
        yield
    finally:
        model.load_weights(own)


def like_parameters(tensors: Mapping[str, Tensor], model: GPT) -> dict[str, Tensor]:
    """Tensors on the device of the model's parameters and sharded like them."""
    return {
        name: shard_like(tensors[name].detach().to(parameter.device), parameter)
        for name, parameter in model.weights().items()
    }


def _offered(offered: Any, place: str) -> Mapping[str, Mapping[str, Tensor]]:
    if offered is None:
        return {}
    if not isinstance(offered, Mapping) or not all(
        isinstance(value, Mapping) for value in offered.values()
    ):
        raise PluginError(
            f"{place} should be None or sets of tensors by name, got {type(offered).__name__}",
            hint='return {"ema": {"wte.weight": tensor, ...}}',
        )
    return offered


def _check_name(
    name: Any, place: str, taken: Mapping[str, WeightSet], callbacks: Callbacks
) -> None:
    if name in taken:
        first = callbacks.label(taken[name].callback)
        raise PluginError(f'{place}: "{name}" is also a set of {first}', hint="rename one of them")
    if not isinstance(name, str) or not re.fullmatch("[a-z0-9_-]+", name) or name in RESERVED:
        raise PluginError(
            f"{place}: {name!r} cannot name a set of weights",
            hint=f'use a-z, 0-9, "-" and "_", but not {", ".join(RESERVED)}',
        )


def _frozen(model: GPT) -> dict[str, Tensor]:
    named = model.named_parameters()
    return {name: p.detach() for name, p in named if not p.requires_grad}


def _check_tensors(tensors: Mapping[str, Tensor], model: GPT, place: str) -> None:
    own = model.weights()
    for name in sorted(own.keys() | tensors.keys(), key=str):
        if name not in tensors and not own[name].requires_grad:
            continue
        if name not in tensors:
            fault = f"has no {name}"
        elif name not in own:
            fault = f"has {name}, which is no parameter"
        elif not isinstance(tensors[name], Tensor) or tensors[name].shape != own[name].shape:
            found = getattr(tensors[name], "shape", type(tensors[name]).__name__)
            fault = f"[{name!r}] should be a tensor of shape {[*own[name].shape]}, got {found}"
        else:
            continue
        raise PluginError(
            f"{place} {fault}", hint="one tensor for each of state.model.named_parameters()"
        )
