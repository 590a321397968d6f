"""AdamW and Muon over parameter groups, and their state by parameter name.

AdamW: Loshchilov & Hutter 2019. Muon: Jordan et al. 2024, for the matrices inside the blocks; the
embedding, the head, biases and norms stay with AdamW.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from gptkit.config import TrainOptions


class Optimizers(Optimizer):
    """Several optimizers as one; `param_groups` are theirs, so that schedules reach them all."""

    def __init__(self, parts: Iterable[Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every group by its own optimizer."""
        for part in self.parts:
            part.step()


def make_optimizer(model: nn.Module, options: TrainOptions) -> Optimizer:
    """The recipe's optimizer for a model; every group carries `name` and `initial_lr`."""
    matrices = {n: p for n, p in model.named_parameters() if p.dim() >= 2}
    vectors = {n: p for n, p in model.named_parameters() if p.dim() < 2}
    hidden: dict[str, nn.Parameter] = {}
    if options.optimizer == "muon":
        hidden = {n: p for n, p in matrices.items() if n.startswith("h.")}
    decayed = [p for n, p in matrices.items() if n not in hidden]
    groups = [
        {"name": "decayed", "params": decayed, "weight_decay": options.weight_decay},
        {"name": "plain", "params": list(vectors.values()), "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    optimizer: Optimizer = AdamW(groups, lr=options.learning_rate, betas=options.betas, fused=fused)
    if hidden:
        muon_group = {"name": "hidden", "params": list(hidden.values())}
        muon = Muon([muon_group], lr=options.muon_learning_rate, weight_decay=options.weight_decay)
        optimizer = Optimizers((optimizer, muon))
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def state_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's tensors as `<parameter name>:<kind>`, e.g. `wte.weight:exp_avg`."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{names[parameter]}:{kind}": value
        for part in _parts(optimizer)
        for parameter, state in part.state.items()
        for kind, value in state.items()
    }


def group_numbers(optimizer: Optimizer) -> list[dict[str, float]]:
    """The plain numbers of every group: rates, decays and whatever a callback put there."""
    return [
        {key: value for key, value in group.items() if isinstance(value, int | float)}
        for group in optimizer.param_groups
    ]


def load_state(
    optimizer: Optimizer,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    numbers: Iterable[Mapping[str, float]],
) -> None:
    """Take back what `state_tensors` and `group_numbers` gave."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition(":")
        states.setdefault(name, {})[kind] = tensor
    for part in _parts(optimizer):
        parameters = [p for group in part.param_groups for p in group["params"]]
        state = {i: states[names[p]] for i, p in enumerate(parameters) if names[p] in states}
        part.load_state_dict({**part.state_dict(), "state": state})
    if isinstance(optimizer, Optimizers):  # loading gave the parts new groups
        optimizer.param_groups = [g for part in optimizer.parts for g in part.param_groups]
    for group, saved in zip(optimizer.param_groups, numbers, strict=True):
        group.update(saved)


def _parts(optimizer: Optimizer) -> tuple[Optimizer, ...]:
    return optimizer.parts if isinstance(optimizer, Optimizers) else (optimizer,)
