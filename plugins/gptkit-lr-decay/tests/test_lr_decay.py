import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from gptkit.plugin import TrainState
from gptkit.testing import check_callback, make_state
from gptkit_lr_decay import LRDecay

STEPS = 200
DECAYS = ("cosine", "linear", "trapezoid")


def factors(**options: Any) -> list[float]:
    """One factor for every step of training and for some after its end."""
    schedule = LRDecay(**options)
    return [schedule.factor(step, STEPS) for step in range(STEPS + 20)]


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("warmup", [1, 7, 50])
def test_warmup_rises_in_equal_parts_to_the_base_rate(decay: str, warmup: int) -> None:
    rates = factors(decay=decay, warmup_steps=warmup)
    assert rates[:warmup] == [(step + 1) / warmup for step in range(warmup)]


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("warmup", [0, 1, 50])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_after_warmup_the_rate_falls_to_the_final_fraction(
    decay: str, warmup: int, final: float
) -> None:
    rates = factors(decay=decay, warmup_steps=warmup, final_fraction=final)
    falling = rates[warmup:]
    assert falling[0] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(falling))
    assert final <= rates[STEPS - 1] <= final + 0.02
    assert rates[STEPS:] == [final] * 20


def test_cosine_is_half_way_down_in_the_middle() -> None:
    rates = factors(warmup_steps=100, final_fraction=0.2)
    assert math.isclose(rates[150], 0.6)
    assert 1 - rates[110] < rates[150] - rates[160]  # gentle at first, steepest in the middle


def test_linear_falls_by_equal_parts() -> None:
    rates = factors(decay="linear", warmup_steps=100, final_fraction=0.0)
    assert rates[100:STEPS] == pytest.approx([1 - part / 100 for part in range(100)])


def test_trapezoid_is_flat_before_its_cooldown() -> None:
    rates = factors(decay="trapezoid", warmup_steps=10, cooldown=0.25, final_fraction=0.0)
    assert set(rates[10:151]) == {1.0}
    assert rates[150:STEPS] == pytest.approx([1 - part / 50 for part in range(50)])


def test_trapezoid_without_cooldown_drops_at_the_end() -> None:
    rates = factors(decay="trapezoid", warmup_steps=20, cooldown=0.0)
    assert set(rates[20:STEPS]) == {1.0}
    assert set(rates[STEPS:]) == {0.1}


def test_trapezoid_that_is_all_cooldown_is_linear() -> None:
    trapezoid = factors(decay="trapezoid", warmup_steps=20, cooldown=1.0)
    assert trapezoid == factors(decay="linear", warmup_steps=20)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("warmup", [STEPS, STEPS + 1, 10 * STEPS])
def test_warmup_may_outlast_training(decay: str, warmup: int) -> None:
    rates = factors(decay=decay, warmup_steps=warmup)
    assert rates[:STEPS] == [(step + 1) / warmup for step in range(STEPS)]
    assert all(math.isfinite(rate) for rate in rates)


def test_every_group_keeps_its_own_base_rate() -> None:
    state, schedule = make_state(steps=STEPS), LRDecay(warmup_steps=10)
    extra = torch.nn.Parameter(torch.ones(1))
    state.optimizer.add_param_group({"params": [extra], "lr": 2.0, "initial_lr": 2.0})
    for step in (0, 5, 9, 120, STEPS - 1):
        state.step = step
        schedule.on_step_start(state)
        first, second = (group["lr"] for group in state.optimizer.param_groups)
        assert first == 0.1 * schedule.factor(step, STEPS)
        assert second == pytest.approx(20 * first)
        assert state.metrics["lr"] == first


def test_a_resumed_run_continues_the_schedule() -> None:
    def rates(state: TrainState, schedule: LRDecay) -> list[float]:
        recorded = []
        while state.step < STEPS:
            schedule.on_step_start(state)
            recorded.append(float(state.metrics["lr"]))
            state.step += 1
        return recorded

    whole, resumed = make_state(steps=STEPS), make_state(steps=STEPS)
    resumed.step = 150
    assert rates(resumed, LRDecay()) == rates(whole, LRDecay())[150:]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"cooldown": 1.1}, "cooldown"),
        ({"final_fraction": math.nan}, "final_fraction"),
        ({"decay": "cosin"}, "decay"),
        ({"warmup": 1}, "warmup"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        LRDecay(**options)


@pytest.mark.parametrize("schedule", [LRDecay(), LRDecay(decay="trapezoid")])
def test_contract(schedule: LRDecay, tmp_path: Path) -> None:
    check_callback(schedule, tmp_path)


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("warmup_tokens", "use warmup_steps"),
        ("decay_tokens", "ends with the recipe's last step"),
        ("decay_steps", "ends with the recipe's last step"),
    ],
)
def test_an_option_of_0_1_is_refused_with_what_to_do(option: str, advice: str) -> None:
    with pytest.raises(ValidationError, match=rf"{option} was removed in 0\.2; .*{advice}"):
        LRDecay.model_validate({option: 1000})
    assert LRDecay.model_validate({"warmup_steps": 3}).warmup_steps == 3
