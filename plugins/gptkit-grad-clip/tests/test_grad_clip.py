import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from gptkit.plugin import TrainState
from gptkit.testing import check_callback, make_state
from gptkit_grad_clip import GradClip


@pytest.fixture
def state() -> TrainState:
    """A model whose gradients have the global norm 5, and a frozen part without gradient."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    model.append(nn.Linear(1, 1).requires_grad_(False))
    model[0].weight.grad = torch.tensor([[0.0, 3.0]])
    model[1].weight.grad = torch.tensor([[-4.0]])
    state = make_state()
    state.model = model
    return state


def gradients(state: TrainState) -> list[Tensor]:
    return [p.grad.clone() for p in state.model.parameters() if p.grad is not None]


def global_norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))


@pytest.mark.parametrize("max_norm", [0.5, 1.0, 4.9])
def test_large_gradients_shrink_to_the_bound_and_keep_their_direction(
    state: TrainState, max_norm: float
) -> None:
    before = gradients(state)
    GradClip(max_norm=max_norm).on_backward_end(state)
    after = gradients(state)
    assert global_norm(after) == pytest.approx(max_norm, rel=1e-5)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old * max_norm / 5, rtol=1e-5, atol=0)


@pytest.mark.parametrize("max_norm", [5.1, 100.0, math.inf])
def test_small_gradients_stay_bit_for_bit(state: TrainState, max_norm: float) -> None:
    before = gradients(state)
    GradClip(max_norm=max_norm).on_backward_end(state)
    assert all(old.equal(new) for old, new in zip(before, gradients(state), strict=True))


def test_the_norm_before_clipping_is_recorded_as_a_tensor(state: TrainState) -> None:
    GradClip().on_backward_end(state)
    norm = state.metrics["grad_norm"]
    assert isinstance(norm, Tensor)
    assert norm.shape == ()
    assert float(norm) == 5.0


def test_a_norm_that_is_known_is_taken_and_no_longer_known_afterwards(state: TrainState) -> None:
    before = gradients(state)
    state.grad_norm = torch.tensor(10.0)  # twice what it is
    GradClip(max_norm=1.0).on_backward_end(state)
    assert state.metrics["grad_norm"] == 10
    assert state.grad_norm is None
    for old, new in zip(before, gradients(state), strict=True):
        torch.testing.assert_close(new, old / 10, rtol=1e-5, atol=0)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan, "much"])
def test_a_bound_must_be_positive(max_norm: float) -> None:
    with pytest.raises(ValidationError, match="max_norm"):
        GradClip(max_norm=max_norm)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    rendezvous = (tmp_path / "rendezvous").as_uri()
    distributed.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_sharded_gradients_are_clipped_and_their_whole_norm_recorded(
    state: TrainState, mesh: DeviceMesh
) -> None:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight = nn.Parameter(distribute_tensor(torch.eye(2), mesh))
    layer.weight.grad = distribute_tensor(torch.tensor([[0.0, 3.0], [4.0, 0.0]]), mesh)
    state.model = layer
    GradClip().on_backward_end(state)
    norm = state.metrics["grad_norm"]
    assert not isinstance(norm, DTensor)
    assert float(norm) == 5.0
    assert isinstance(layer.weight.grad, DTensor)
    assert float(layer.weight.grad.full_tensor().norm()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("max_norm", [0.01, math.inf])
def test_contract(max_norm: float, tmp_path: Path) -> None:
    check_callback(GradClip(max_norm=max_norm), tmp_path)
