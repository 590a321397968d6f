"""Parameter groups in checkpoints: their numbers, and the names of the parameters in each."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gptkit.errors import CheckpointError
from gptkit.training.optimizer import FLAGS, Optimizers

Groups = Sequence[dict[str, Any]]
"""As `describe` returns them: JSON values, with the names of the parameters as "params"."""


def describe(optimizer: Optimizer, model: nn.Module) -> list[dict[str, Any]]:
    """Every group's optimizer, numbers, texts and tuples of numbers, and its parameters' names."""
    names = _names(model)
    return [
        {
            "optimizer": _kind(optimizer, group),
            **{key: value for key, value in group.items() if _is_plain(value)},
            "params": [names[parameter] for parameter in group["params"]],
        }
        for group in optimizer.param_groups
    ]


def load(optimizer: Optimizer, model: nn.Module, saved: Groups) -> bool:
    """Load the numbers of saved groups; returns whether the optimizer has just these groups.

    If it does not, nothing is changed. Format 1 named no parameters: its groups are those of equal
    position.

    Raises:
        CheckpointError: the groups are those of another optimizer.
    """
    check(optimizer, model, saved)
    names, groups = _names(model), optimizer.param_groups
    if all("params" in group for group in saved):
        present = {frozenset(names[p] for p in group["params"]): group for group in groups}
        found = [present.get(frozenset(group["params"])) for group in saved]
        if None in found or len(saved) != len(groups):
            return False
        groups[:] = [group for group in found if group is not None]
    for group, values in zip(groups, saved, strict=True):
        group.update(_numbers(values))
    return True


def restore(optimizer: Optimizer, model: nn.Module, saved: Groups) -> None:
    """Make the optimizer's groups those that were saved, however they are divided now."""
    if not load(optimizer, model, saved):
        regroup(optimizer, model, saved)


def regroup(optimizer: Optimizer, model: nn.Module, saved: Groups) -> None:
    """Make the optimizer's groups those that were saved."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    origin = {p: group for group in optimizer.param_groups for p in group["params"]}
    groups = []
    for values in saved:
        members = [parameters[name] for name in values["params"]]
        template = next((origin[p] for p in members if p in origin), optimizer.param_groups[0])
        groups.append({**template, **_numbers(values), "params": members})
    optimizer.param_groups[:] = groups


def renewed(saved: Groups, *, first: Groups, now: Groups) -> list[dict[str, Any]]:
    """Saved groups with the numbers that callbacks set otherwise now than when the run began.

    So an option of a callback that was changed for a resumed run counts. Nothing is taken if the
    parameters are divided otherwise than when the run began.

    Args:
        saved: the groups of the checkpoint.
        first: the groups after `on_fit_start` when the run began.
        now: the groups after `on_fit_start` in the resumed run.
    """
    began, begins = _by_members(first), _by_members(now)
    if began.keys() != begins.keys():
        return list(saved)
    groups = []
    for group in saved:
        old, new = (_numbers(found.get(_members(group), {})) for found in (began, begins))
        groups.append(group | {key: v for key, v in new.items() if key in old and old[key] != v})
    return groups


def check(optimizer: Optimizer, model: nn.Module, saved: Groups) -> None:
    """Raise a CheckpointError if the groups were saved from another optimizer."""
    named = _members_of_all(saved)
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    own = {_kind(optimizer, group): group for group in optimizer.param_groups}

    def fits(i: int, values: dict[str, Any]) -> bool:
        if "params" not in values:
            return len(saved) == len(optimizer.param_groups) and _has_numbers_of(
                optimizer.param_groups[i], values
            )
        if not parameters.keys() >= set(values["params"]):
            return False
        members = {"params": [parameters[name] for name in values["params"]]}
        kind = _kind(optimizer, members)
        return kind == values.get("optimizer") and _has_numbers_of(own.get(kind, {}), values)

    if len(set(named)) < len(named) or not all(itertools.starmap(fits, enumerate(saved))):
        raise CheckpointError(
            "the optimizer's parameter groups are not those of the checkpoint",
            hint="resume with the recipe that the run was started with",
        )


def _by_members(groups: Groups) -> dict[frozenset[str], dict[str, Any]]:
    return {_members(group): group for group in groups}


def _members(group: dict[str, Any]) -> frozenset[str]:
    return frozenset(group.get("params", ()))


def _kind(optimizer: Optimizer, group: dict[str, Any]) -> str:
    """The class of the optimizer that updates a group."""
    if isinstance(optimizer, Optimizers):
        optimizer = optimizer.owner(group) or optimizer
    return type(optimizer).__name__


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """What was saved of a group, without its optimizer and its parameters."""
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
        if key not in {"optimizer", "params"} | FLAGS
    }


def _has_numbers_of(group: dict[str, Any], values: dict[str, Any]) -> bool:
    """Whether what was saved of an optimizer's group has values of the same kinds."""
    own = _numbers(group)
    return all(_is_like(value, own[key]) for key, value in values.items() if key in own)


def _is_like(saved: Any, value: Any) -> bool:
    """Whether a saved value can take the place of an optimizer's own; tuples are of factors."""
    if isinstance(value, tuple):
        factors = saved if isinstance(saved, list | tuple) else ()
        fit = all(_is_like(factor, 0.0) and 0 <= factor < 1 for factor in factors)
        return len(factors) == len(value) and fit
    if isinstance(value, int | float):
        return type(saved) in (int, float) and math.isfinite(saved)
    return isinstance(saved, str)


def _members_of_all(groups: Groups) -> list[str]:
    return [name for group in groups for name in group.get("params", ())]


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(item, int | float) for item in value)
    return isinstance(value, int | float | str)


def _names(model: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}
