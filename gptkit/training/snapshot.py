"""Snapshot: what a checkpoint captures of a training, and restores."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gptkit.errors import CheckpointError, PluginError
from gptkit.model.gpt import GPT
from gptkit.plugin import Callback, TrainState
from gptkit.training import optimizer
from gptkit.training.sharding import full_state, shard_state

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """A training after a step: everything that a resumed run needs to continue exactly."""

    step: int
    val_loss: float | None
    """Of the latest evaluation, in nats per token."""
    val_step: int | None
    """The step of the latest evaluation."""
    optimizer_groups: list[dict[str, Any]]
    """Numbers of every parameter group."""
    callbacks: list[dict[str, Any]]
    """JSON values of every callback, in the recipe's order."""
    tensors: dict[str, Tensors]
    """"model": the weights; "optimizer": moments and generator states; "callbacks": tensors of
    callbacks, as `<position>:<key>`."""


def take(state: TrainState, model: GPT, callbacks: Mapping[str, Callback]) -> Snapshot:
    """Capture a training.

    Under `shard = true` every rank must take part; only on rank 0 the tensors are complete.

    Raises:
        PluginError: a callback's state is neither JSON nor tensors.
    """
    values, tensors = _callback_states(callbacks)
    keep = state.rank == 0
    moments = full_state(optimizer.state_tensors(state.optimizer, model), keep=keep)
    return Snapshot(
        step=state.step,
        val_loss=state.val_loss,
        val_step=state.val_step,
        optimizer_groups=optimizer.group_numbers(state.optimizer),
        callbacks=values,
        tensors={
            "model": full_state(model.weights(), keep=keep),
            "optimizer": moments | _generator_states(model.wte.weight.device),
            "callbacks": tensors,
        },
    )


def restore(
    snapshot: Snapshot, state: TrainState, model: GPT, callbacks: Mapping[str, Callback]
) -> None:
    """Restore a snapshot into a training that was set up from the same recipe.

    Raises:
        CheckpointError: it was taken with another model, optimizer or other callbacks.
    """
    groups = len(state.optimizer.param_groups)
    _check_equal("callbacks", len(snapshot.callbacks), len(callbacks), snapshot.step)
    _check_equal("optimizer groups", len(snapshot.optimizer_groups), groups, snapshot.step)
    model.load_weights(shard_state(snapshot.tensors["model"], model))
    moments = shard_state(snapshot.tensors["optimizer"], model)
    _set_generator_states(moments, model.wte.weight.device)
    optimizer.load_state(state.optimizer, model, moments, snapshot.optimizer_groups)
    tensors = snapshot.tensors.get("callbacks", {})
    saved = zip(callbacks.values(), snapshot.callbacks, strict=True)
    for i, (callback, values) in enumerate(saved):
        own = {k.partition(":")[2]: v for k, v in tensors.items() if k.startswith(f"{i}:")}
        callback.load_state_dict(values | own)
    state.step = snapshot.step
    state.val_loss, state.val_step = snapshot.val_loss, snapshot.val_step
    state.tokens = snapshot.step * state.tokens_per_step


def _check_equal(what: str, saved: int, present: int, step: int) -> None:
    if saved != present:
        raise CheckpointError(
            f"the checkpoint of step {step} has {saved} {what}, the recipe {present}",
            hint="resume with the recipe that the run was started with",
        )


def _callback_states(
    callbacks: Mapping[str, Callback],
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Every callback's JSON values, in order, and all their tensors."""
    states = [callback.state_dict() for callback in callbacks.values()]
    for name, state in zip(callbacks, states, strict=True):
        for key, value in state.items():
            _check_storable(value, f"{name}: state_dict()[{key!r}]")
    values = [{k: v for k, v in s.items() if not isinstance(v, Tensor)} for s in states]
    tensors = {
        f"{i}:{k}": v for i, s in enumerate(states) for k, v in s.items() if isinstance(v, Tensor)
    }
    return values, tensors


def _check_storable(value: Any, place: str) -> None:
    if isinstance(value, Tensor):
        return
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"{place} is neither a JSON value nor a tensor: {error}",
            hint="lists, dicts, strings, numbers, booleans, None or one tensor per key",
        ) from error


def _generator_states(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators that dropout uses, as `generator:<device type>`."""
    states = {"generator:cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["generator:cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_generator_states(tensors: dict[str, Tensor], device: torch.device) -> None:
    """Pop the generator states from `tensors`; one of another device type is dropped."""
    torch.set_rng_state(tensors.pop("generator:cpu"))
    cuda = tensors.pop("generator:cuda", None)
    if cuda is not None and device.type == "cuda":
        torch.cuda.set_rng_state(cuda, device)
