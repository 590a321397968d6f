from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import PrivateAttr
from torch import Tensor

from gptkit.codec import TextCodec
from gptkit.errors import DivergedError, PluginError
from gptkit.model.gpt import GPT
from gptkit.plugin import EVENTS, Callback, Data, Split, TokenFile, TrainState
from gptkit.recipe.options import GPTConfig, TrainOptions
from gptkit.testing import LetterCodec
from gptkit.training.callbacks import Callbacks
from gptkit.training.device import resolve_device
from gptkit.training.trainer import Trainer

Log = list[tuple[str, str, int]]


class Recorder(Callback):
    """Writes down every event; does something of its own at some."""

    _name: str = PrivateAttr()
    _log: Log = PrivateAttr()
    _acts: dict[str, Callable[[TrainState], None]] = PrivateAttr()

    def _record(self, event: str, state: TrainState) -> None:
        self._log.append((self._name, event, state.step))
        self._acts.get(event, lambda state: None)(state)

    def on_fit_start(self, state: TrainState) -> None:
        self._record("on_fit_start", state)

    def on_step_start(self, state: TrainState) -> None:
        self._record("on_step_start", state)

    def on_backward_end(self, state: TrainState) -> None:
        self._record("on_backward_end", state)

    def on_step_end(self, state: TrainState) -> None:
        self._record("on_step_end", state)

    def on_eval_end(self, state: TrainState) -> None:
        self._record("on_eval_end", state)

    def on_save_end(self, state: TrainState) -> None:
        self._record("on_save_end", state)

    def on_fit_end(self, state: TrainState) -> None:
        self._record("on_fit_end", state)


def recorder(name: str, log: Log, **acts: Callable[[TrainState], None]) -> Recorder:
    made = Recorder()
    made._name, made._log, made._acts = name, log, acts
    return made


def raiser(error: BaseException, *, at_step: int = 0) -> Callable[[TrainState], None]:
    def act(state: TrainState) -> None:
        if state.step == at_step:
            raise error

    return act


@pytest.fixture
def data(tmp_path: Path) -> Data:
    letters = np.arange(200, dtype=np.uint8) % 26
    letters.tofile(tmp_path / "tokens")

    def part(start: int, stop: int) -> TokenFile:
        return TokenFile(tmp_path / "tokens", "uint8", start=start, stop=stop, block_size=8)

    return Data(part(0, 150), part(150, 200), LetterCodec(), vocab_size=26, block_size=8)


def trainer(
    data: Data, callbacks: Mapping[str, Callback], *, warn: Collection[str] = (), **options: Any
) -> Trainer:
    torch.manual_seed(0)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 8}
    model = GPT(GPTConfig(vocab_size=data.vocab_size, block_size=data.block_size, **shape))
    chosen = TrainOptions(
        **{"steps": 4, "batch_size": 4, "eval_every": 2, "device": "cpu"} | options
    )
    return Trainer(
        model, data, options=chosen, run_device=resolve_device(chosen), seed=1,
        callbacks=Callbacks(callbacks, on_error=dict.fromkeys(warn, "warn")),
        save=lambda snapshot: Path(f"step-{snapshot.step}"),
    )  # fmt: skip


def test_the_golden_order_of_the_events(data: Data) -> None:
    log: Log = []
    callbacks = {name: recorder(name, log) for name in ("b", "a")}
    trainer(data, callbacks, micro_batch_size=2).fit()
    golden = [
        ("on_fit_start", 0),
        ("on_step_start", 0),
        ("on_backward_end", 0),
        ("on_step_end", 1),
        ("on_step_start", 1),
        ("on_backward_end", 1),
        ("on_step_end", 2),
        ("on_eval_end", 2),
        ("on_save_end", 2),
        ("on_step_start", 2),
        ("on_backward_end", 2),
        ("on_step_end", 3),
        ("on_step_start", 3),
        ("on_backward_end", 3),
        ("on_step_end", 4),
        ("on_eval_end", 4),
        ("on_save_end", 4),
        ("on_fit_end", 4),
    ]
    # In the recipe's order at every event: not sorted, and not turned round at the end.
    assert log == [(name, event, step) for event, step in golden for name in ("b", "a")]


def test_every_event_of_the_contract_is_recorded(data: Data) -> None:
    log: Log = []
    trainer(data, {"a": recorder("a", log)}).fit()
    assert tuple(dict.fromkeys(event for _, event, _ in log)) == EVENTS


@pytest.mark.parametrize(
    ("options", "evaluated"),
    [
        ({"eval_every": 3}, [3, 4]),  # the last step is always evaluated
        ({"eval_every": 100}, [4]),
        ({"eval_every": 1}, [1, 2, 3, 4]),
        ({"eval_every": 2, "save_every": 1}, [2, 4]),
    ],
)
def test_evaluations_come_when_due(
    data: Data, options: dict[str, int], evaluated: list[int]
) -> None:
    log: Log = []
    trainer(data, {"a": recorder("a", log)}, **options).fit()
    assert [step for _, event, step in log if event == "on_eval_end"] == evaluated


@pytest.mark.parametrize("event", EVENTS)
def test_an_exception_carries_name_event_and_step(data: Data, event: str) -> None:
    log: Log = []
    error = ValueError("mine")
    step = {"on_fit_start": 0, "on_eval_end": 2, "on_save_end": 2, "on_fit_end": 4}.get(event, 1)
    first = recorder("first", log)
    culprit = recorder("culprit", log, **{event: raiser(error, at_step=step)})
    last = recorder("last", log)
    with pytest.raises(ValueError, match="mine") as caught:
        trainer(data, {"first": first, "the culprit": culprit, "last": last}).fit()
    assert caught.value is error
    said, *saved = error.__notes__
    assert said == f"raised by the culprit in {event} at step {step}"
    complete = event in ("on_step_end", "on_eval_end", "on_save_end") or (
        event == "on_step_start" and step
    )
    assert saved == [f"step {step} is saved: gptkit resume continues after it"] * complete
    ended = [name for name, event, _ in log if event == "on_fit_end"]
    assert ended == ["first", "culprit", "last"]  # once each, and last of all
    assert [event for _, event, _ in log[-3:]] == ["on_fit_end"] * 3
    if event != "on_fit_end":  # after a complete step every callback learns of it
        assert (("last", event, step) in log) == (complete and event != "on_step_start")


def test_the_first_exception_tells_of_the_others(data: Data) -> None:
    failing = {
        name: recorder(name, [], on_step_end=raiser(ValueError(f"of {name}"), at_step=1))
        for name in ("a", "b")
    }
    with pytest.raises(ValueError, match="of a") as caught:
        trainer(data, failing).fit()
    assert caught.value.__notes__ == [
        "raised by a in on_step_end at step 1",
        "afterwards ValueError: of b (raised by b in on_step_end at step 1)",
        "step 1 is saved: gptkit resume continues after it",
    ]


def test_a_step_by_hand_raises_what_a_callback_raised(data: Data) -> None:
    failing = recorder("a", [], on_step_end=raiser(ValueError("mine"), at_step=1))
    with pytest.raises(ValueError, match="mine"):
        trainer(data, {"a": failing}).step()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_on_fit_end_comes_after_an_interruption(data: Data, error: BaseException) -> None:
    log: Log = []
    stopping = recorder("a", log, on_step_end=raiser(error, at_step=2))
    with pytest.raises(type(error)):
        trainer(data, {"a": stopping}).fit()
    assert [entry for entry in log if entry[1] == "on_fit_end"] == [("a", "on_fit_end", 2)]


def test_an_exception_in_on_fit_end_hides_no_earlier_one(data: Data) -> None:
    log: Log = []
    both = recorder(
        "a", log, on_step_end=raiser(OSError("first"), at_step=1),
        on_fit_end=raiser(ValueError("second"), at_step=1),
    )  # fmt: skip
    with pytest.raises(ValueError, match="second") as caught:
        trainer(data, {"a": both, "b": recorder("b", log)}).fit()
    assert isinstance(caught.value.__context__, OSError)
    assert ("b", "on_fit_end", 1) in log


class Broken(Split):
    """A split whose third batch cannot be read."""

    stride = 8

    def __init__(self, whole: Split) -> None:
        self.whole, self.batches = whole, 0

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        self.batches += 1
        if self.batches == 3:
            raise OSError("the disk is gone")
        return self.whole[indices]


def test_on_fit_end_comes_after_an_exception_in_the_data(data: Data) -> None:
    log: Log = []
    broken = Data(Broken(data.train), data.val, data.codec, vocab_size=26, block_size=8)
    with pytest.raises(OSError, match="the disk is gone"):
        trainer(broken, {"a": recorder("a", log)}).fit()
    assert log[-2:] == [("a", "on_step_start", 2), ("a", "on_fit_end", 2)]


def test_on_fit_end_comes_after_divergence(data: Data) -> None:
    def poison(state: TrainState) -> None:
        if state.step == 2:
            next(state.model.parameters()).data.fill_(torch.inf)

    log: Log = []
    with pytest.raises(DivergedError):
        trainer(data, {"a": recorder("a", log, on_step_start=poison)}).fit()
    assert log[-2:] == [("a", "on_step_start", 2), ("a", "on_fit_end", 2)]


@pytest.mark.parametrize("event", [event for event in EVENTS if event != "on_fit_end"])
def test_stop_ends_training_after_the_step(data: Data, event: str) -> None:
    def stop(state: TrainState) -> None:
        state.stop = True

    log: Log = []
    state = trainer(data, {"a": recorder("a", log, **{event: stop})}).fit()
    assert state.step == {"on_fit_start": 0, "on_eval_end": 2, "on_save_end": 2}.get(event, 1)
    assert log[-1] == ("a", "on_fit_end", state.step)
    assert sum(event == "on_step_end" for _, event, _ in log) == state.step


def test_losses_are_visible_where_the_contract_says(data: Data) -> None:
    seen: list[tuple[str, int, bool, bool]] = []

    def look(event: str) -> Callable[[TrainState], None]:
        def act(state: TrainState) -> None:
            known = state.val_loss is not None
            seen.append((event, state.step, bool(state.loss.isfinite()), known))

        return act

    watching = recorder("a", [], **{event: look(event) for event in EVENTS})
    trainer(data, {"a": watching}, steps=2).fit()
    assert seen == [
        ("on_fit_start", 0, False, False),
        ("on_step_start", 0, False, False),
        ("on_backward_end", 0, True, False),
        ("on_step_end", 1, True, False),
        ("on_step_start", 1, True, False),
        ("on_backward_end", 1, True, False),
        ("on_step_end", 2, True, False),
        ("on_eval_end", 2, True, True),
        ("on_save_end", 2, True, True),
        ("on_fit_end", 2, True, True),
    ]


def test_the_training_loss_is_that_of_the_whole_batch_before_the_update(data: Data) -> None:
    losses: list[float] = []
    expected: list[float] = []
    made: list[Trainer] = []

    def compute(state: TrainState) -> None:
        with torch.no_grad():
            parts = list(made[0].micro_batches())
            whole = state.model(*(torch.cat([p[i] for p in parts]) for i in (0, 1)))
        expected.append(whole.item())

    watching = recorder(
        "a", [], on_step_start=compute, on_step_end=lambda state: losses.append(state.loss.item())
    )
    made.append(trainer(data, {"a": watching}, micro_batch_size=1))
    made[0].fit()
    assert losses == pytest.approx(expected, abs=1e-6)
    assert len(set(losses)) == 4


def test_gradients_are_complete_before_the_update(data: Data) -> None:
    snapshots: list[dict[str, Tensor]] = []

    def weights(state: TrainState) -> None:
        snapshots.append({n: p.detach().clone() for n, p in state.model.named_parameters()})

    def gradients(state: TrainState) -> None:
        weights(state)
        assert all(p.grad is not None and p.grad.any() for p in state.model.parameters())

    watching = recorder(
        "a", [], on_step_start=weights, on_backward_end=gradients, on_step_end=weights
    )
    trainer(data, {"a": watching}, steps=1).fit()
    before, complete, after = snapshots
    assert all(torch.equal(before[name], complete[name]) for name in before)
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_a_callback_changes_the_update_through_the_gradients(data: Data) -> None:
    def freeze(state: TrainState) -> None:
        for group in state.optimizer.param_groups:
            group["weight_decay"] = 0.0
        state.optimizer.zero_grad(set_to_none=False)

    made = trainer(data, {"a": recorder("a", [], on_backward_end=freeze)})
    before = {n: p.detach().clone() for n, p in made.state.model.named_parameters()}
    made.fit()
    assert all(torch.equal(before[n], p) for n, p in made.state.model.named_parameters())


def test_a_callback_sees_the_model_in_training_mode(data: Data) -> None:
    modes: list[tuple[str, bool]] = []

    def look(event: str) -> Callable[[TrainState], None]:
        return lambda state: modes.append((event, state.model.training))

    watching = recorder("a", [], on_step_end=look("step"), on_eval_end=look("eval"))
    state = trainer(data, {"a": watching}, steps=2).fit()
    assert isinstance(state.model, GPT)
    assert modes == [("step", True), ("step", True), ("eval", True)]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("on_step_ends", 'did you mean "on_step_end"?'),
        ("on_eval_edn", 'did you mean "on_eval_end"?'),
        ("on_xyz", "; events: on_fit_start, on_step_start, "),
    ],
)
def test_a_method_that_looks_like_an_event_is_refused(name: str, advice: str) -> None:
    def method(self: Callback, state: TrainState) -> None: ...

    with pytest.raises(TypeError, match=rf"^Mine\.{name} is not an event; ") as caught:
        type("Mine", (Callback,), {name: method, "__module__": __name__})
    assert advice in str(caught.value)


@pytest.mark.parametrize("kind", [Callback, TextCodec])
def test_a_contract_with_a_type_is_refused(kind: type) -> None:
    with pytest.raises(TypeError, match=r"^Mine\.contract: write it without a type: contract = 1"):
        type("Mine", (kind,), {"__annotations__": {"contract": int}, "contract": 1})


def test_an_event_that_takes_no_state_is_refused() -> None:
    said = r"^Mine\.on_step_end should take the state: def on_step_end\(self, state\)"
    with pytest.raises(TypeError, match=said):
        type("Mine", (Callback,), {"on_step_end": lambda self: None, "__module__": __name__})


def test_other_methods_and_every_event_are_fine() -> None:
    def method(self: Callback, state: TrainState) -> None: ...

    names = [*EVENTS, "only_this", "_on_step_ends", "one_step"]
    type("Mine", (Callback,), dict.fromkeys(names, method) | {"__module__": __name__})


def test_a_callback_without_methods_does_nothing(data: Data) -> None:
    assert trainer(data, {"a": Callback()}).fit().step == 4


def test_no_callback_takes_back_an_interruption(data: Data) -> None:
    log: Log = []

    def carry_on(state: TrainState) -> None:
        training.interrupt()  # as a signal handler does, at whatever moment
        state.stop = False

    training = trainer(data, {"one": recorder("one", log, on_eval_end=carry_on)}, eval_every=2)
    assert training.fit().step == 2
    assert [event for _, event, _ in log][-1] == "on_fit_end"


@pytest.mark.parametrize("event", EVENTS)
def test_a_callback_that_may_fail_does_not_end_training(
    data: Data, event: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(state: TrainState) -> None:
        raise LookupError("no\n  network")

    log: Log = []
    callbacks = {
        "tracker": recorder("tracker", log, **{event: fail}), "last": recorder("last", log)
    }  # fmt: skip
    state = trainer(data, callbacks, warn=["tracker"]).fit()
    assert (state.step, state.error) == (4, None)
    count = sum(entry[:2] == ("tracker", event) for entry in log)
    assert count == sum(entry[:2] == ("last", event) for entry in log)  # the event goes on
    first, *rest = capsys.readouterr().err.splitlines()
    step = next(step for name, found, step in log if (name, found) == ("tracker", event))
    fault = "LookupError: no network; training goes on"
    assert first == f"warning: tracker failed in {event} at step {step}: {fault}"
    times = "once" if count == 1 else f"{count} times"
    assert rest == [f"warning: tracker failed {times} ({event} {count})"]


def test_a_state_that_fails_is_left_out_of_the_checkpoint(
    data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    class Tracker(Callback):
        def on_step_end(self, state: TrainState) -> None: ...

        def state_dict(self) -> dict[str, Any]:
            return {"run": object()}

        def weights(self) -> Any:
            return {"ema": {}}

    with pytest.raises(PluginError, match=r"tracker: state_dict\(\)\['run'\] is an object"):
        trainer(data, {"tracker": Tracker()}, eval_every=99, save_every=1).fit()
    made = trainer(data, {"tracker": Tracker()}, warn=["tracker"])
    made.fit()
    assert made.checkpoints.saved_step == 4
    assert made.state.val_losses == {}
    assert capsys.readouterr().err.count("tracker failed in state_dict at step 2") == 1


def test_a_failure_on_another_process_says_so(
    data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    made = trainer(data, {"a": recorder("a", [], on_fit_start=raiser(OSError("gone")))}, warn=["a"])
    made.state.rank = 1
    made.fit()
    assert "warning: process 1: a failed in on_fit_start at step 0: OSError: gone" in (
        capsys.readouterr().err
    )


def test_an_interruption_ends_training_though_the_callback_may_fail(data: Data) -> None:
    pressing = recorder("a", [], on_step_end=raiser(KeyboardInterrupt(), at_step=2))
    with pytest.raises(KeyboardInterrupt):
        trainer(data, {"a": pressing}, warn=["a"]).fit()


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_on_fit_end_sees_why_training_ends(data: Data, kind: type[BaseException]) -> None:
    found: list[BaseException | None] = []
    raised = kind("mine")
    callbacks = {
        "raising": recorder("raising", [], on_step_end=raiser(raised, at_step=1)),
        "last": recorder("last", [], on_fit_end=lambda state: found.append(state.error)),
    }
    with pytest.raises(kind):
        trainer(data, callbacks).fit()
    assert found == [raised]


def test_a_signal_is_a_reason_but_a_wish_to_stop_is_none(data: Data) -> None:
    found: list[BaseException | None] = []
    looking = {"a": recorder("a", [], on_fit_end=lambda state: found.append(state.error))}
    interrupted, stopped, whole = (trainer(data, looking) for _ in range(3))
    interrupted.interrupt()
    stopped.state.stop = True
    for made in (interrupted, stopped, whole):
        made.fit()
    steps = whole.steps()
    whole.state.step = 3
    next(steps)
    steps.close()
    kinds = [type(error) for error in found]
    assert kinds == [KeyboardInterrupt, type(None), type(None), type(None)]


def test_on_save_end_sees_the_complete_checkpoint(data: Data) -> None:
    found: list[tuple[int, Path | None]] = []
    looking = recorder(
        "a", [], on_step_end=lambda state: found.append((state.step, state.checkpoint)),
        on_save_end=lambda state: found.append((state.step, state.checkpoint)),
    )  # fmt: skip
    trainer(data, {"a": looking}).fit()
    two, four = Path("step-2"), Path("step-4")
    assert found == [(1, None), (2, None), (2, two), (3, two), (4, two), (4, four)]
