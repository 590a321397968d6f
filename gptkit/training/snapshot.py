"""One moment of training: all that has to be put back so that it goes on as if nothing happened."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gptkit.errors import CheckpointError, PluginError
from gptkit.model.gpt import GPT
from gptkit.plugin import Callback, TrainState
from gptkit.runs.checkpoint import State, Tensors
from gptkit.training import optimizer
from gptkit.training.sharding import full_state, shard_state


def take(
    state: TrainState, model: GPT, callbacks: Mapping[str, Callback]
) -> tuple[dict[str, Any], dict[str, Tensors]]:
    """Values for `checkpoint.State` and tensors by file name, for `checkpoint.save` on rank 0.

    Under `shard = true` every rank has to take part; the files of the others stay empty.

    Raises:
        PluginError: a callback's state is neither JSON nor tensors.
    """
    values, tensors = _callback_states(callbacks)
    moment = {
        "step": state.step,
        "val_loss": state.val_loss,
        "optimizer_groups": optimizer.group_numbers(state.optimizer),
        "callbacks": values,
    }
    keep = state.rank == 0
    moments = full_state(optimizer.state_tensors(state.optimizer, model), keep=keep)
    files = {
        "model": full_state(model.weights(), keep=keep),
        "optimizer": moments | _generator_states(model.wte.weight.device),
        "callbacks": tensors,
    }
    return moment, files


def restore(
    state: TrainState,
    model: GPT,
    callbacks: Mapping[str, Callback],
    *,
    saved: State,
    files: Mapping[str, Tensors],
) -> None:
    """Put back what `take` took, into a training set up by the same recipe.

    Raises:
        CheckpointError: it was taken with another model, optimizer or other callbacks.
    """
    groups = len(state.optimizer.param_groups)
    _check_equal("callbacks", len(saved.callbacks), len(callbacks), saved.step)
    _check_equal("optimizer groups", len(saved.optimizer_groups), groups, saved.step)
    model.load_weights(shard_state(files["model"], model))
    moments = shard_state(files["optimizer"], model)
    _set_generator_states(moments, model.wte.weight.device)
    optimizer.load_state(state.optimizer, model, moments, saved.optimizer_groups)
    tensors = files.get("callbacks", {})
    for i, (callback, values) in enumerate(zip(callbacks.values(), saved.callbacks, strict=True)):
        own = {k.partition(":")[2]: v for k, v in tensors.items() if k.startswith(f"{i}:")}
        callback.load_state_dict(values | own)
    state.step, state.val_loss = saved.step, saved.val_loss


def _check_equal(what: str, saved: int, named: int, step: int) -> None:
    if saved != named:
        raise CheckpointError(
            f"the checkpoint of step {step} holds {saved} {what}, the recipe {named}",
            hint="resume with the recipe that the run began with",
        )


def _callback_states(
    callbacks: Mapping[str, Callback],
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Every callback's JSON values in order; all tensors, as `<position>:<key>`."""
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
    """The states of the generators that dropout draws from, as `generator:<device type>`."""
    states = {"generator:cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["generator:cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_generator_states(tensors: dict[str, Tensor], device: torch.device) -> None:
    """Take the generator states out of `tensors`; one of another device type is dropped."""
    torch.set_rng_state(tensors.pop("generator:cpu"))
    cuda = tensors.pop("generator:cuda", None)
    if cuda is not None and device.type == "cuda":
        torch.cuda.set_rng_state(cuda, device)
