"""AdamW and Muon over parameter groups, and their state by parameter name.

AdamW: Loshchilov & Hutter 2019. Muon: Jordan et al. 2024, for the matrices of the blocks; AdamW
updates the embedding, the head, biases and norms.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gptkit.errors import UsageError
from gptkit.model.gpt import BLOCKS, is_sharded
from gptkit.recipe.options import AdamWOptions, AnyOptimizerOptions, MuonOptions, OptimizerOptions
from gptkit.training.sharding import local_tensor, map_whole, n_ranks

QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b, c of the iteration a X + b (X X^T) X + c (X X^T)^2 X, which moves singular values to 1."""
ITERATIONS = 5
FLAGS = {"amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused"}
FLAGS |= {"decoupled_weight_decay"}
"""Options of torch's AdamW that say how it computes: recipe and device decide, no checkpoint."""
MOMENTS = {"AdamW": ("step", "exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",)}
"""What each optimizer keeps of a parameter; a step is a number, the others have its shape."""


class AdamW(torch.optim.AdamW):
    """torch's AdamW without the wrappers that import torch's compiler, which eager steps never use.

    That import takes a second, half of what gptkit needs to start a training.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Muon(Optimizer):
    """Updates every matrix by its orthogonalised momentum.

    The update of `torch.optim.Muon`, but matrices of one shape are iterated as one batch, and on
    CPUs in float32, which is faster there than bfloat16. Of sharded matrices each rank iterates its
    share, one at a time.

    Args:
        params: matrices alone, or groups of them.
        lr: step length, times sqrt(rows / columns) if a matrix has more rows than columns.
        momentum: averaging factor of the gradients (Nesterov momentum).
        weight_decay: decoupled, as in AdamW.
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    add_param_group = AdamW.add_param_group
    zero_grad = AdamW.zero_grad
    state_dict = AdamW.state_dict
    load_state_dict = AdamW.load_state_dict

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            for matrices in _by_shape(with_gradient):
                size = n_ranks(matrices[0]) if is_sharded(matrices[0]) else len(matrices)
                for begin in range(0, len(matrices), size):
                    self._update(matrices[begin : begin + size], group)

    def _update(self, matrices: list[Tensor], group: Mapping[str, Any]) -> None:
        """Update matrices of one shape; of sharded ones, at most as many as there are ranks."""
        rate, momentum = group["lr"], group["momentum"]
        gradients = [local_tensor(m.grad) for m in matrices if m.grad is not None]
        buffers = [local_tensor(self._buffer(m)) for m in matrices]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        nesterov = torch._foreach_lerp(gradients, buffers, momentum)
        if is_sharded(matrices[0]):
            updates = map_whole(lambda m: orthogonal(m[None])[0], nesterov, matrices[0])
        else:
            updates = [*orthogonal(torch.stack(nesterov))]
        rows, columns = matrices[0].shape
        torch._foreach_mul_(updates, -rate * max(1.0, rows / columns) ** 0.5)
        own = [local_tensor(m) for m in matrices]
        torch._foreach_mul_(own, 1 - rate * group["weight_decay"])
        torch._foreach_add_(own, updates)

    def _buffer(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


class Optimizers(Optimizer):
    """Several optimizers as one: each updates the groups of its own parameters.

    `param_groups` are those of all parts; what a callback changes, adds or splits there counts.
    """

    def __init__(self, parts: Iterable[Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self._owners = {p: part for part in self.parts for p in _parameters(part)}

    add_param_group = AdamW.add_param_group
    zero_grad = AdamW.zero_grad

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every group by its own optimizer."""
        self.assign_groups()
        for part in self.parts:
            part.step()

    def owner(self, group: Mapping[str, Any]) -> Optimizer | None:
        """The part that updates a group; None if no part updates all of its parameters."""
        found = {self._owners.get(parameter) for parameter in group["params"]}
        return found.pop() if len(found) == 1 else None

    def assign_groups(self) -> None:
        """Give every part its groups.

        Raises:
            ValueError: a group has parameters of two parts, or of none.
        """
        groups = [group for group in self.param_groups if group["params"]]
        owners = [self.owner(group) for group in groups]
        if None in owners:
            kinds = " or of ".join(type(part).__name__ for part in self.parts)
            raise ValueError(f"a parameter group should hold parameters of {kinds} alone")
        for part in self.parts:
            owned = zip(groups, owners, strict=True)
            part.param_groups = [group for group, owner in owned if owner is part]


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrices, roughly: singular values between about 0.7 and 1.2.

    A Newton-Schulz iteration on the smaller side, in bfloat16 on GPUs and float32 elsewhere.
    (n, rows, columns) to the same shape and dtype.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    if x.device.type == "cuda":
        x = x.bfloat16()
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def make_optimizer(model: nn.Module, options: AnyOptimizerOptions) -> Optimizer:
    """The recipe's optimizer for a model; every group carries `name` and `initial_lr`.

    Parameters that require no gradient are left out.

    Raises:
        UsageError: no parameter requires one.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise UsageError("no parameter of the model requires a gradient: there is nothing to train")
    match options:
        case AdamWOptions():
            optimizer = _adamw(named, options)
        case MuonOptions():
            hidden = {n: p for n, p in named.items() if p.dim() >= 2 and n.startswith(BLOCKS)}
            others = {n: p for n, p in named.items() if n not in hidden}
            parts = [_adamw(others, options)] if others else []
            parts += [_muon(list(hidden.values()), options)] if hidden else []
            optimizer = Optimizers(parts) if len(parts) > 1 else parts[0]
        case unknown:
            assert_never(unknown)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _adamw(named: Mapping[str, nn.Parameter], options: OptimizerOptions) -> Optimizer:
    """AdamW, which decays matrices but not vectors."""
    parameters = list(named.values())
    groups = [
        {
            "name": "decayed",
            "params": [p for p in parameters if p.dim() >= 2],
            "weight_decay": options.weight_decay,
        },
        {"name": "plain", "params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = parameters[0].device.type in ("cpu", "cuda")
    return AdamW(groups, lr=options.learning_rate, betas=options.betas, fused=fused)


def _muon(matrices: list[nn.Parameter], options: MuonOptions) -> Optimizer:
    return Muon(
        [{"name": "hidden", "params": matrices}],
        lr=options.muon_learning_rate,
        momentum=options.muon_momentum,
        weight_decay=options.weight_decay,
    )


def state_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's tensors as `<parameter name>:<kind>`, e.g. `wte.weight:exp_avg`."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{names[parameter]}:{kind}": value
        for part in _parts(optimizer)
        for parameter, state in part.state.items()
        for kind, value in state.items()
    }


def load_state(optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `state_tensors` returned."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition(":")
        states.setdefault(name, {})[kind] = tensor
    for part in _parts(optimizer):
        state = {i: states[names[p]] for i, p in enumerate(_parameters(part)) if names[p] in states}
        part.load_state_dict({**part.state_dict(), "state": state})


def _by_shape(matrices: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    shapes: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        shapes.setdefault(matrix.shape, []).append(matrix)
    yield from shapes.values()


def _parts(optimizer: Optimizer) -> tuple[Optimizer, ...]:
    return optimizer.parts if isinstance(optimizer, Optimizers) else (optimizer,)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
