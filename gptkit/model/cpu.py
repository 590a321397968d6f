"""Linear layers for training on x86 CPUs in float32, by oneDNN instead of MKL.

They compute what torch's do, but for rounding. docs/experiments.md has the measurements.
"""

import platform
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def trains(x: Tensor) -> bool:
    """Whether a linear layer of x is to be trained eagerly, in float32, on a CPU for `linear`."""
    return (
        x.requires_grad
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and _has_onednn()
        and bool(torch.backends.mkldnn.enabled)
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, (..., C) to (..., out)."""
    result: Tensor = _Linear.apply(x, weight, bias)
    return result


class _Linear(Function):
    """oneDNN multiplies by weights faster than MKL; the gradient of the weights stays with MKL."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)  # (N, out)
        return (
            _gradient(grad, weight) if of_x else None,
            rows.t() @ x.flatten(0, -2) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """Of x (..., C), from that of the output; with `create_graph`, it has a gradient itself."""
    return grad @ weight if torch.is_grad_enabled() else _product(grad, weight.t())


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product of x (..., C) and weight (out, C), which may be a transposed view, plus bias."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


@cache
def _has_onednn() -> bool:
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return on_x86 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
