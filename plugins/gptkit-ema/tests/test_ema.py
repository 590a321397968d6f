from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from gptkit.plugin import Callback, TrainState
from gptkit.testing import check_callback, drive, make_state
from gptkit_ema import EMA


def average(ema: EMA, name: str = "ema") -> dict[str, Tensor]:
    found = ema.weights()
    assert found
    return dict(found[name])


def train(ema: EMA, state: TrainState, steps: int) -> list[dict[str, Tensor]]:
    """Drive the callback for some steps more; the weights before the first and after each step."""
    seen = [{name: w.detach().clone() for name, w in state.model.named_parameters()}]
    for _ in range(steps):
        state.steps = state.step + 1
        drive(ema, state)
        seen.append({name: w.detach().clone() for name, w in state.model.named_parameters()})
    return seen


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_average_is_that_of_the_definition(decay: float) -> None:
    ema, state = EMA(decay=decay), make_state()
    first, *later = train(ema, state, 6)
    for name, expected in first.items():
        for step, weights in enumerate(later, 1):
            kept = min(decay, step / (step + 9))
            expected = kept * expected + (1 - kept) * weights[name]
        torch.testing.assert_close(average(ema)[name], expected, rtol=1e-5, atol=1e-6)
        assert decay == 0 or not torch.equal(average(ema)[name], later[-1][name])


def test_the_weights_are_not_touched() -> None:
    with_ema, without = make_state(), make_state()
    train(EMA(), with_ema, 4)
    drive(Callback(), without)
    for mine, other in zip(with_ema.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_second_training_does_not_begin_with_the_average_of_the_first() -> None:
    used, new = EMA(), EMA()
    train(used, make_state(), 2)
    train(used, make_state(), 3)
    train(new, make_state(), 3)
    for name, expected in average(new).items():
        assert torch.equal(average(used)[name], expected)


def test_a_resumed_average_continues_exactly_whatever_the_order_of_its_tensors() -> None:
    whole, state = EMA(), make_state()
    train(whole, state, 6)
    first, again = EMA(), make_state()
    train(first, again, 3)
    saved = {name: weight.clone() for name, weight in reversed(average(first).items())}
    second = EMA()
    second.load_weights({"ema": saved})
    train(second, again, 3)
    assert all(
        torch.equal(weight, average(whole)[name]) for name, weight in average(second).items()
    )
    assert all(torch.equal(weight, average(first)[name]) for name, weight in saved.items())


def test_two_averages_have_two_names() -> None:
    slow, state = EMA(name="slow"), make_state()
    assert slow.weights() is None  # before training
    slow.load_weights({"ema": {}})  # what another one saved
    train(slow, state, 1)
    assert list(slow.weights() or {}) == ["slow"]


@pytest.mark.parametrize(
    "options", [{"decay": 1.0}, {"decay": -0.1}, {"name": "a b"}, {"name": ""}]
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        EMA.model_validate(options)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    rendezvous = (tmp_path / "rendezvous").as_uri()
    distributed.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_the_average_of_sharded_weights_is_sharded_like_them(mesh: DeviceMesh) -> None:
    state, ema, layer = make_state(), EMA(decay=0.0), nn.Linear(2, 2, bias=False)
    layer.weight = nn.Parameter(distribute_tensor(torch.eye(2), mesh))
    state.model = layer
    ema.on_fit_start(state)
    with torch.no_grad():
        layer.weight.mul_(3)
    state.step = 1
    ema.on_step_end(state)
    (weight,) = average(ema).values()
    assert isinstance(weight, DTensor)
    assert weight.placements == layer.weight.placements
    assert torch.equal(weight.full_tensor(), 3 * torch.eye(2))


@pytest.mark.parametrize("ema", [EMA(), EMA(decay=0.9, name="slow")])
def test_contract(ema: EMA, tmp_path: Path) -> None:
    check_callback(ema, tmp_path)
