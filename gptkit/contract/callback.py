"""Callback: a plugin that acts at the events of a training."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gptkit.contract.base import Plugin
from gptkit.contract.train_state import TrainState
from gptkit.errors import DefinitionError, closest

EVENTS = (
    "on_fit_start",
    "on_step_start",
    "on_backward_end",
    "on_step_end",
    "on_eval_end",
    "on_save_end",
    "on_fit_end",
)
"""The events of training at which callbacks run, in the order in which they first occur."""

USUAL_WORDS = {"begin": "start", "train": "fit", "validation": "eval", "checkpoint": "save"}
"""Words that events have elsewhere, and gptkit's words."""


def _renamed(name: str, words: tuple[str, str]) -> str:
    return name.replace(*words)


def _takes_state(method: Any) -> bool:
    """Whether a method can be called with a state; what is no plain function is not looked at."""
    if not inspect.isfunction(method):
        return True
    try:
        inspect.signature(method).bind("self", "state")
    except TypeError:
        return False
    return True


class Callback(Plugin):
    """Code that runs at events of a training; an entry point in `gptkit.callbacks`.

    Override the events that it needs.
    """

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse events that do not exist, which would never be called, or take no state."""
        super().__pydantic_init_subclass__(**kwargs)
        for name in vars(cls):
            if name.startswith("on_") and name not in EVENTS:
                near = closest(functools.reduce(_renamed, USUAL_WORDS.items(), name), EVENTS)
                advice = f'did you mean "{near}"?' if near else f"events: {', '.join(EVENTS)}"
                raise DefinitionError(f"{cls.__name__}.{name} is not an event; {advice}")
            if name in EVENTS and not _takes_state(vars(cls)[name]):
                raise DefinitionError(
                    f"{cls.__name__}.{name} should take the state: def {name}(self, state)"
                )

    def on_fit_start(self, state: TrainState) -> None:
        """Once, before the first step; a resumed run has loaded its checkpoint: open files."""

    def on_step_start(self, state: TrainState) -> None:
        """Before the batch: set rates."""

    def on_backward_end(self, state: TrainState) -> None:
        """Gradients are complete, the weights not yet updated: clip."""

    def on_step_end(self, state: TrainState) -> None:
        """After the update: log, or stop early with `state.stop = True`."""

    def on_eval_end(self, state: TrainState) -> None:
        """After an evaluation, which has set `state.val_loss` and `state.val_losses`."""

    def on_save_end(self, state: TrainState) -> None:
        """A checkpoint is complete, `state.checkpoint` on rank 0: upload it.

        A large one is written while training goes on: then `state.step` is later than its step.
        """

    def on_fit_end(self, state: TrainState) -> None:
        """Once, always, also after an error or Ctrl-C, which is `state.error`: close files."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: JSON values, with tensors anywhere among them.

        JSON values are dicts with texts as keys, lists, texts, numbers, booleans and None. Sharded
        tensors are stored whole.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; a resumed run calls it before `on_fit_start`.

        Tensors come back on the CPU. Under `shard = true` one that has a parameter's name as its
        key, and its shape, comes back sharded like that parameter.
        """

    def weights(self) -> Mapping[str, Mapping[str, Tensor]] | None:
        """Further sets of weights, by name: averages, for example `{"ema": {"wte.weight": ...}}`.

        Each set has a tensor for every parameter of the model, by its name and of its shape. The
        core evaluates it after the model itself, which gives `state.val_losses`, and saves it with
        the model; `--weights NAME` samples, evaluates and exports it. A name consists of a-z, 0-9,
        "-" and "_". What is returned here need not be in `state_dict`, too. A parameter that is
        frozen, `requires_grad` is False, may be left out: it is the model's own in any case.
        """
        return None

    def load_weights(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore what `weights` returned; a resumed run calls it after `load_state_dict`.

        The tensors are like the parameters: on their device and, under `shard = true`, sharded.
        """
