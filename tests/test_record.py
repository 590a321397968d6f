"""`TrainState.record()`: the same numbers for every tracker, measured once per step."""

import math

import pytest
import torch

from gptkit.contract.recorder import Recorder
from gptkit.plugin import TrainState
from gptkit.testing import make_state


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still but for what a test says."""
    now = [0.0]
    monkeypatch.setattr("gptkit.contract.recorder.perf_counter", lambda: now[0])
    return now


def step(state: TrainState, clock: list[float], seconds: float = 1.0) -> None:
    """A step of 64 tokens."""
    state.begin_step()
    state.loss = torch.tensor(1 / (state.step + 2))
    state.metrics["grad_norm"] = torch.tensor(0.5)
    clock[0] += seconds
    state.step += 1
    state.tokens += state.tokens_per_step


def evaluate(state: TrainState, clock: list[float], seconds: float = 10.0) -> None:
    state.recorder.stop()
    clock[0] += seconds
    state.val_loss, state.val_step = 2.0, state.step


def test_a_record_has_everything_that_is_logged(clock: list[float]) -> None:
    state = make_state()
    step(state, clock, 0.5)
    record = state.record()
    assert record == {
        "step": 1, "loss": 0.5, "lr": 0.1, "grad_norm": 0.5, "tokens": 64,
        "tokens_per_second": 128.0, "elapsed": 0.5,
    }  # fmt: skip
    assert list(record) == [
        "step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "elapsed",
    ]  # fmt: skip
    assert isinstance(record["step"], int)
    assert isinstance(record["tokens"], int)


def test_several_loggers_get_the_same_record_of_a_step(clock: list[float]) -> None:
    state = make_state()
    step(state, clock)
    first = state.record()
    clock[0] += 5  # a slow upload
    assert state.record() == first
    state.metrics["lr"] = 0.01  # recorded later in the same step
    assert state.record() == first | {"lr": 0.01}


def test_the_speed_is_that_since_the_record_before_and_of_training_alone(
    clock: list[float],
) -> None:
    state = make_state()
    step(state, clock, 1)
    state.record()
    step(state, clock, 2)
    evaluate(state, clock, 10)
    step(state, clock, 2)
    assert state.record()["tokens_per_second"] == 128 / 4
    assert state.record()["elapsed"] == 15
    evaluate(state, clock, 10)
    step(state, clock, 4)
    assert state.record()["tokens_per_second"] == 64 / 4


def test_further_numbers_are_measured_once_per_step_and_take_no_time_of_training(
    clock: list[float],
) -> None:
    def usage(rate: float | None) -> dict[str, float]:
        clock[0] += 50  # as long as measuring a peak may take
        return {} if rate is None else {"mfu": rate / 1000}

    state = make_state()
    state.recorder = Recorder(usage)
    assert "mfu" not in state.record()
    for _ in range(2):
        step(state, clock, 2)
        record = state.record()
        assert (record["tokens_per_second"], record["mfu"]) == (32, 0.032)
        now = clock[0]
        assert (state.record(), clock[0]) == (record, now)


def test_an_evaluation_within_a_step_is_not_counted(clock: list[float]) -> None:
    state = make_state()
    state.begin_step()
    with state.recorder.paused():
        clock[0] += 10
    clock[0] += 2
    state.step, state.tokens = 1, 64
    assert state.record()["tokens_per_second"] == 32


def test_the_clock_goes_on_after_an_evaluation_that_failed(clock: list[float]) -> None:
    state = make_state()
    state.begin_step()
    with pytest.raises(OSError), state.recorder.paused():
        raise OSError
    clock[0] += 2
    state.step, state.tokens = 1, 64
    assert state.record()["tokens_per_second"] == 32


def test_the_validation_loss_belongs_to_the_step_of_its_evaluation(clock: list[float]) -> None:
    state = make_state()
    state.val_losses = {"ema": 1.5}
    step(state, clock)
    assert "val_loss" not in state.record()
    evaluate(state, clock)
    assert state.record()["val_loss"] == 2.0
    assert state.record()["val_loss_ema"] == 1.5
    step(state, clock)
    assert not any(name.startswith("val_loss") for name in state.record())


@pytest.mark.parametrize("asked_before", [False, True])
def test_after_an_error_in_a_step_the_record_is_that_of_the_step_before(
    clock: list[float], asked_before: bool
) -> None:
    state = make_state()
    step(state, clock)
    if asked_before:
        state.record()
    state.begin_step()
    state.metrics["lr"] = 7.0
    state.loss = torch.tensor(math.nan)
    record = state.record()
    assert (record["step"], record["loss"], record["lr"], record["tokens"]) == (1, 0.5, 0.1, 64)


def test_values_are_read_from_the_device_once_per_step(clock: list[float]) -> None:
    class Counting(torch.Tensor):
        read = 0

        def __float__(self) -> float:
            Counting.read += 1
            return 3.0

    state = make_state()
    step(state, clock)
    state.metrics["spread"] = torch.zeros(()).as_subclass(Counting)
    assert state.record()["spread"] == state.record()["spread"] == 3.0
    assert Counting.read == 1


def test_a_tensor_that_is_updated_in_place_is_read_again_at_the_next_step(
    clock: list[float],
) -> None:
    state = make_state()
    state.metrics["seen"] = seen = torch.zeros(())
    for count in (1, 2):
        step(state, clock)
        seen += 1
        assert state.record()["seen"] == count
