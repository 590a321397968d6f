"""Snapshot: what a checkpoint captures of a training, and restores."""

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptkit.contract import state_tree
from gptkit.errors import CheckpointError, GptkitError, PluginError
from gptkit.model.gpt import GPT
from gptkit.plugin import TrainState
from gptkit.recipe import adapters
from gptkit.recipe.options import GPTConfig
from gptkit.training import groups, optimizer, weight_sets
from gptkit.training.callbacks import Callbacks
from gptkit.training.merging import adapters_of, merged
from gptkit.training.sharding import (
    Sharded,
    host_copy,
    local_tensor,
    rows_alone,
    shard_like,
)

Tensors = dict[str, Tensor]
GENERATORS = {"generator:cpu": "cpu", "generator:cuda": "cuda"}
"""The tensors of generator states, and the device type of each."""


@dataclass(frozen=True)
class Snapshot:
    """A training after a step: everything that a resumed run needs to continue exactly."""

    config: GPTConfig
    """The model's."""
    step: int
    tokens: int | None
    """Target tokens seen; None in format 1, which did not count them."""
    batch_size: int | None
    """Sequences per update, if a callback changed it."""
    val_loss: float | None
    """Of the latest evaluation, in nats per token."""
    val_losses: dict[str, float]
    """Of the further sets of weights at that evaluation."""
    val_step: int | None
    """The step of the latest evaluation."""
    optimizer_groups: list[dict[str, Any]]
    """Every parameter group, as `groups.describe` does."""
    first_groups: groups.Groups
    """Likewise, after `on_fit_start` when the run began; empty in format 1."""
    callbacks: dict[str, Any] | list[dict[str, Any]]
    """JSON values of every callback by name; in format 1 in the recipe's order."""
    weights: dict[str, str]
    """The callback that offered each further set of weights, by the set's name."""
    tensors: Mapping[str, Mapping[str, Tensor]] = field(repr=False)
    """"model": the weights; "model.NAME": further sets of them; "adapter_model" and
    "adapter_model.NAME": adapters, whose products are in these weights; "optimizer": moments and
    generator states; "callbacks": tensors of callbacks by their paths, in format 1 as
    `<position>:<key>`."""


def take(
    state: TrainState,
    model: GPT,
    callbacks: Callbacks,
    *,
    first_groups: groups.Groups = (),
    batch_size: int | None = None,
) -> Snapshot:
    """Capture a training. The tensors are its own: write or copy them before it goes on.

    Under `shard = true` every rank must take part, and has its own rows of the tensors.

    Args:
        state: of the training.
        model: its model.
        callbacks: their states and weights are part of the snapshot.
        first_groups: the parameter groups after `on_fit_start` when the run began.
        batch_size: sequences per update, if that is not what the recipe says.

    Raises:
        PluginError: a callback's state is neither JSON nor tensors, or its weights do not fit.
    """
    values, tensors = _callback_states(callbacks, state)
    sets = weight_sets.collect(callbacks, model, state)
    weights = {"": model.weights(), **{f".{n}": offered.tensors for n, offered in sets.items()}}
    files = {
        **{f"model{name}": merged(model, tensors) for name, tensors in weights.items()},
        **{adapters.FILE + name: found for name, t in weights.items() if (found := adapters_of(t))},
        "optimizer": optimizer.state_tensors(state.optimizer, model)
        | generator_states(model.wte.weight.device),
        "callbacks": tensors,
    }
    return Snapshot(
        config=model.config,
        step=state.step,
        tokens=state.tokens,
        batch_size=batch_size,
        val_loss=state.val_loss,
        val_losses=dict(state.val_losses),
        val_step=state.val_step,
        optimizer_groups=groups.describe(state.optimizer, model),
        first_groups=first_groups,
        callbacks=values,
        weights={name: offered.callback for name, offered in sets.items()},
        tensors={file: _each(rows_alone, named) for file, named in files.items()},
    )


def n_bytes(snapshot: Snapshot) -> int:
    """Bytes of the tensors, or of this rank's rows of them."""
    tensors = (tensor for named in snapshot.tensors.values() for tensor in named.values())
    return sum(local_tensor(tensor).nbytes for tensor in tensors)


def copy(snapshot: Snapshot) -> Snapshot:
    """The same with tensors of its own in the host's memory, so that training can go on."""
    tensors = {file: _each(host_copy, named) for file, named in snapshot.tensors.items()}
    copied = (tensor for named in snapshot.tensors.values() for tensor in named.values())
    for device in {tensor.device for tensor in copied}:
        if device.type == "cuda":  # which need not be the current one
            torch.cuda.synchronize(device)
    return replace(snapshot, tensors=tensors)


def pins_copies(snapshot: Snapshot) -> bool:
    """Whether a copy is in pinned memory, which torch then keeps for the next one."""
    return any(tensor.is_cuda for tensor in snapshot.tensors["model"].values())


def restore(snapshot: Snapshot, state: TrainState, model: GPT, callbacks: Callbacks) -> None:
    """Restore a snapshot into a training that was set up from the same recipe.

    Of a model with adapters only these are restored: it has the weights beside them already.

    The parameter groups are left to `groups.restore`.

    Raises:
        CheckpointError: it was taken with another model or optimizer.
    """
    model.load_weights(Sharded(_parameters(snapshot, model), model))
    moments = Sharded(snapshot.tensors["optimizer"], model)
    set_generator_states(moments, model.wte.weight.device)
    optimizer.load_state(state.optimizer, model, moments)
    state.step = snapshot.step
    state.val_loss, state.val_step = snapshot.val_loss, snapshot.val_step
    state.val_losses = dict(snapshot.val_losses)
    state.batch_size = snapshot.batch_size or state.batch_size
    tokens = snapshot.tokens
    state.tokens = snapshot.step * state.tokens_per_step if tokens is None else tokens
    _restore_callbacks(snapshot, state, model, callbacks)


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators that dropout uses, as `generator:<device type>`."""
    states = {"generator:cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["generator:cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore generator states; one of another device type is left out."""
    torch.set_rng_state(tensors["generator:cpu"])
    if device.type == "cuda" and "generator:cuda" in tensors:
        torch.cuda.set_rng_state(tensors["generator:cuda"], device)


def describe_changes(snapshot: Snapshot, callbacks: Mapping[str, Any]) -> str | None:
    """Which callbacks the recipe has in addition to the snapshot's, and which it lacks.

    None if they are the same.
    """
    if isinstance(snapshot.callbacks, list):
        return None
    added = [name for name in callbacks if name not in snapshot.callbacks]
    removed = [name for name in snapshot.callbacks if name not in callbacks]
    parts = [
        f"{verb} {', '.join(names)}"
        for verb, names in (("added", added), ("removed", removed))
        if names
    ]
    return f"callbacks changed since the checkpoint: {'; '.join(parts)}" if parts else None


def _parameters(snapshot: Snapshot, model: GPT, suffix: str = "") -> Mapping[str, Tensor]:
    """The parameters of the model, or of the further set of weights of a suffix."""
    found = snapshot.tensors.get(adapters.FILE + suffix)
    if found is None:
        return snapshot.tensors[f"model{suffix}"]
    own = {name: weight.detach().clone() for name, weight in model.weights().items()}
    return own | dict(found)


def _each(change: Callable[[Tensor], Tensor], tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: change(tensor) for name, tensor in tensors.items()}


def _callback_states(callbacks: Callbacks, state: TrainState) -> tuple[dict[str, Any], Tensors]:
    """Every callback's JSON values by name, and all their tensors by path."""
    values: dict[str, Any] = {}
    tensors: Tensors = {}
    for name, callback in callbacks.items():
        values[name] = {}
        with callbacks.blaming(name, "state_dict", state):
            place = f"{callbacks.label(name)}: state_dict()"
            own = callback.state_dict()
            if not isinstance(own, Mapping):
                raise PluginError(
                    f"{place} should be a dict, got {type(own).__name__}",
                    hint='return {"what": it}',
                )
            values[name], found = state_tree.separate(own, name=name, place=place)
            tensors |= found
    return values, tensors


def _restore_callbacks(
    snapshot: Snapshot, state: TrainState, model: GPT, callbacks: Callbacks
) -> None:
    parameters = dict(model.named_parameters())
    for name, values in _states_by_name(snapshot, callbacks, parameters).items():
        if name in callbacks:
            with (
                callbacks.blaming(name, "load_state_dict", state),
                _explained(callbacks.label(name)),
            ):
                callbacks[name].load_state_dict(values)
    for name in callbacks:
        sets = {
            of: weight_sets.like_parameters(_parameters(snapshot, model, f".{of}"), model)
            for of, owner in snapshot.weights.items()
            if owner == name
        }
        if sets:
            with callbacks.blaming(name, "load_weights", state), _explained(callbacks.label(name)):
                callbacks[name].load_weights(sets)


@contextmanager
def _explained(label: str) -> Iterator[None]:
    """Say in two lines that a callback cannot take what the checkpoint has of it."""
    try:
        yield
    except GptkitError:
        raise
    except Exception as error:
        *_, frame = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        raise CheckpointError(
            f"{label} cannot restore its state: {type(error).__name__}: {error} ({place})",
            hint="resume with the version of its package that saved it, or without this callback",
        ) from error


def _states_by_name(
    snapshot: Snapshot, callbacks: Callbacks, parameters: Mapping[str, Tensor]
) -> dict[str, Any]:
    """What every callback's `state_dict` returned."""
    tensors = snapshot.tensors.get("callbacks", {})
    if isinstance(snapshot.callbacks, dict):
        sharded = {
            path: shard_like(t, parameters.get(state_tree.last_key(path)))
            for path, t in tensors.items()
        }
        states: dict[str, Any] = state_tree.join(snapshot.callbacks, sharded)
        return states
    if len(snapshot.callbacks) != len(callbacks):
        raise CheckpointError(
            f"the checkpoint of step {snapshot.step} has {len(snapshot.callbacks)} callbacks, "
            f"the recipe {len(callbacks)}",
            hint="resume with the recipe that the run was started with",
        )
    return {
        name: values | {k.partition(":")[2]: t for k, t in tensors.items() if k.startswith(f"{i}:")}
        for i, (name, values) in enumerate(zip(callbacks, snapshot.callbacks, strict=True))
    }
