"""The contract of callbacks as assertions."""

import io
import json
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from gptkit.conformance.drive import drive, make_state
from gptkit.conformance.options import check_options
from gptkit.contract import state_tree
from gptkit.contract.callback import EVENTS, Callback
from gptkit.errors import PluginError

STOPPED = 2
"""The step at which the training of `check_callback` is stopped and resumed."""


def check_callback(callback: Callback, run_dir: Path) -> None:
    """Assert the contract of callbacks.

    Args:
        callback: with the options to test.
        run_dir: an empty folder; stands for the run folder.
    """
    check_options(callback)
    kind = type(callback).__name__
    overridden = [e for e in EVENTS if getattr(type(callback), e) is not getattr(Callback, e)]
    assert overridden, f"{kind} overrides no event; there are {', '.join(EVENTS)}"
    _check_end(callback.model_copy(deep=True))
    _check_quiet(callback.model_copy(deep=True))
    fresh, state = callback.model_copy(deep=True), make_state(run_dir)
    drive(callback, state)
    for name, parameter in state.model.named_parameters():
        assert parameter.isfinite().all(), f"{kind} makes {name} infinite or not a number"
    with TemporaryDirectory() as folder:
        _check_resumed(fresh, Path(folder))
    _check_weights(callback)
    restored = _restored(callback)
    again, expected = _stored(restored), _stored(callback)
    assert _equal(again, expected), (
        f"{kind}.load_state_dict must restore state_dict: it should return {expected}, not {again}"
    )


def _check_end(callback: Callback) -> None:
    """Assert that on_fit_end works after an on_fit_start that failed, or was never reached."""
    state = make_state()
    state.error = OSError("an error of another callback")
    try:
        callback.on_fit_end(state)
    except Exception as error:
        kind = type(callback).__name__
        raise AssertionError(
            f"{kind}.on_fit_end must work even if on_fit_start failed, not raise {error!r}"
        ) from error


def _check_quiet(callback: Callback) -> None:
    """Assert that a callback works on a rank that has no run folder, and prints nothing there."""
    state, output = make_state(), io.StringIO()
    state.rank = 1
    with redirect_stdout(output), redirect_stderr(output):
        drive(callback, state)
    assert not output.getvalue(), (
        f"{type(callback).__name__} prints on process 1, only process 0 may: check state.rank; "
        f"it printed {output.getvalue()!r}"
    )


def _check_resumed(callback: Callback, folder: Path) -> None:
    """Assert that a training that is stopped and resumed ends with the weights of one that is not.

    Not looked at is one that the callback itself ends before the stop.
    """
    whole, parts = make_state(folder / "whole"), make_state(folder / "parts")
    for state in (whole, parts):
        assert state.run_dir
        state.run_dir.mkdir()
    torch.manual_seed(0)
    drive(callback.model_copy(deep=True), whole)
    torch.manual_seed(0)
    drive(callback, parts, until=STOPPED)
    if whole.step <= STOPPED:
        return
    parts.stop, parts.error = False, None
    drive(_restored(callback), parts)
    kind = type(callback).__name__
    assert parts.step == whole.step, (
        f"with {kind} a resumed training ends at step {parts.step}, an uninterrupted one at "
        f"{whole.step}: is everything in state_dict?"
    )
    pairs = zip(parts.model.named_parameters(), whole.model.parameters(), strict=True)
    for (name, resumed), expected in pairs:
        assert torch.equal(resumed, expected), (
            f"with {kind} a resumed training ends with another {name}: is everything in state_dict?"
        )


def _check_weights(callback: Callback) -> None:
    """Assert that the weights that a callback offers come back."""
    kind = type(callback).__name__
    offered = _restored(callback).weights() or {}
    expected = callback.weights() or {}
    assert offered.keys() == expected.keys(), (
        f"{kind}.load_weights must restore weights: {[*expected]}, not {[*offered]}"
    )
    for name, tensors in expected.items():
        same = all(torch.equal(offered[name][key], tensors[key]) for key in tensors)
        assert same, f"{kind}.load_weights must restore the values of weights"


def _restored(callback: Callback) -> Callback:
    """A new callback that was given state and weights of this one, as in a resumed run."""
    restored = type(callback).model_validate(callback.model_dump())
    values, tensors = _stored(callback)
    copied = {path: tensor.detach().clone() for path, tensor in tensors.items()}
    restored.load_state_dict(state_tree.join({"state": json.loads(values)}, copied)["state"])
    if weights := callback.weights():
        restored.load_weights(
            {n: {k: t.detach().clone() for k, t in s.items()} for n, s in weights.items()}
        )
    return restored


def _stored(callback: Callback) -> tuple[str, dict[str, Tensor]]:
    """What a checkpoint holds of a callback's state: JSON, and tensors by path."""
    state = callback.state_dict()
    place = f"{type(callback).__name__}.state_dict()"
    assert isinstance(state, Mapping), f"{place} must be a dict, not {type(state).__name__}"
    try:
        values, tensors = state_tree.separate(state, name="state", place=place)
    except PluginError as error:
        raise AssertionError(f"{error}: {error.hint}") from error
    return json.dumps(values, sort_keys=True), tensors


def _equal(a: tuple[str, dict[str, Tensor]], b: tuple[str, dict[str, Tensor]]) -> bool:
    (values, tensors), (others, other_tensors) = a, b
    return (
        values == others
        and tensors.keys() == other_tensors.keys()
        and all(torch.equal(tensors[path], other_tensors[path]) for path in tensors)
    )
