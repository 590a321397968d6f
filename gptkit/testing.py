"""The plugin contract as assertions, for the tests of plugins.

def test_contract(tmp_path):
    check_callback(MyCallback(patience=3), tmp_path)
"""

import io
import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from gptkit.codec import TextCodec
from gptkit.codec_contract import check_codec, check_contract
from gptkit.plugin import EVENTS, IGNORE, Callback, Data, Dataset, Plugin, Split, TrainState

__all__ = [
    "LetterCodec",
    "check_callback",
    "check_codec",
    "check_dataset",
    "check_options",
    "check_split",
    "drive",
    "make_state",
]


class LetterCodec(TextCodec):
    """A codec for tests: the letters a to z as tokens 0 to 25."""

    contract = 1

    def encode(self, prompt: str) -> list[int]:
        """One id per letter; "" starts with "a"."""
        return [ord(letter) - ord("a") for letter in prompt or "a"]

    @property
    def token_bytes(self) -> list[bytes]:
        """One letter per id."""
        return [bytes([code]) for code in range(ord("a"), ord("z") + 1)]


def make_state(run_dir: Path | None = None, *, steps: int = 4) -> TrainState:
    """A small training state with a real model and optimizer, for tests of callbacks."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return TrainState(
        model=model,
        optimizer=optimizer,
        codec=LetterCodec(),
        steps=steps,
        batch_size=8,
        block_size=8,
        run_dir=run_dir,
        sample=lambda tokens, seed, prompt="": b"abc",
    )


def drive(callback: Callback, state: TrainState) -> None:
    """Run a callback through the remaining steps of `state`, with an evaluation after each."""
    try:
        callback.on_fit_start(state)
        while state.step < state.steps and not state.stop:
            state.begin_step()
            callback.on_step_start(state)
            state.optimizer.zero_grad()
            loss = state.model(torch.ones(2, 4)).square().mean()
            loss.backward()
            state.loss = loss.detach()
            gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
            state.grad_norm = torch.nn.utils.get_total_norm(gradients)
            callback.on_backward_end(state)
            state.optimizer.step()
            state.step += 1
            state.tokens += state.tokens_per_step
            callback.on_step_end(state)
            state.recorder.stop()
            state.val_loss, state.val_step = float(state.loss), state.step
            callback.on_eval_end(state)
    finally:
        callback.on_fit_end(state)


def check_options(plugin: Plugin) -> None:
    """Assert that a plugin and its options are documented, and the options frozen and strict."""
    kind = type(plugin)
    assert (kind.__doc__ or "").strip(), f"{kind.__name__} needs a docstring"
    check_contract(kind)
    for name, field in kind.model_fields.items():
        assert field.description, f"{kind.__name__}.{name} needs a sentence below it"
        value = getattr(plugin, name)
        assert _refused(setattr, plugin, name, value), "options must be frozen"
    assert _refused(kind.model_validate, {"no_such_option": 1}), "unknown options must be refused"
    options = plugin.model_dump(mode="json", exclude_none=True)
    again = kind.model_validate(json.loads(json.dumps(options)))
    assert again.model_dump() == plugin.model_dump(), "options must survive TOML and JSON"


def check_callback(callback: Callback, run_dir: Path) -> None:
    """Assert the contract of callbacks.

    Args:
        callback: with the options to test.
        run_dir: an empty folder; stands for the run folder.
    """
    check_options(callback)
    overridden = [e for e in EVENTS if getattr(type(callback), e) is not getattr(Callback, e)]
    assert overridden, "it overrides no event"
    fresh = callback.model_copy(deep=True)
    fresh.on_fit_end(make_state())  # is called even if on_fit_start failed
    _check_quiet(callback.model_copy(deep=True))
    state = make_state(run_dir)
    drive(callback, state)
    assert all(parameter.isfinite().all() for parameter in state.model.parameters())
    values = callback.state_dict()
    plain = {key: value for key, value in values.items() if not isinstance(value, Tensor)}
    assert json.loads(json.dumps(plain)) == plain, "state_dict must hold JSON values and tensors"
    restored = type(callback).model_validate(callback.model_dump())
    restored.load_state_dict(values)
    assert _equal(restored.state_dict(), values), "load_state_dict must restore state_dict"


def check_dataset(dataset: Dataset, *, prompts: Sequence[str] = ()) -> Data:
    """Assert the contract of data sets; return the loaded data.

    Args:
        dataset: with the options to test.
        prompts: prompts that the data's codec must be able to read.
    """
    check_options(dataset)
    data, again = dataset.load(), dataset.load()
    assert (data.sha256, data.codec) == (again.sha256, again.codec), "load() must be repeatable"
    for split, other in ((data.train, again.train), (data.val, again.val)):
        check_split(split, vocab_size=data.vocab_size, block_size=data.block_size)
        last = torch.tensor([len(split) - 1])
        assert torch.equal(split[last][0], other[last][0]), "load() must be repeatable"
    check_codec(data.codec, prompts=prompts, vocab_size=data.vocab_size)
    return data


def check_split(split: Split, *, vocab_size: int, block_size: int) -> None:
    """Assert that windows are int64 (B, block_size) with ids below vocab_size."""
    assert 1 <= split.stride <= block_size
    indices = torch.tensor([0, len(split) - 1, 0])
    x, y = split[indices]
    for part, lowest in ((x, 0), (y, IGNORE)):
        assert part.shape == (3, block_size)
        assert part.dtype == torch.int64
        assert part.device.type == "cpu"
        assert int(part.min()) >= lowest
        assert int(part.max()) < vocab_size
    assert torch.equal(x[0], x[2]), "the same number must give the same window"
    assert torch.equal(split[indices[1:2]][0][0], x[1]), "a window must not depend on its batch"


def _check_quiet(callback: Callback) -> None:
    """Assert that a callback works on a rank that has no run folder, and prints nothing there."""
    state, output = make_state(), io.StringIO()
    state.rank = 1
    with redirect_stdout(output), redirect_stderr(output):
        drive(callback, state)
    assert not output.getvalue(), "only rank 0 may print: check state.rank"


def _refused(action: Callable[..., Any], *arguments: Any) -> bool:
    try:
        action(*arguments)
    except ValidationError:
        return True
    return False


def _equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if isinstance(a[key], Tensor) else a[key] == b[key] for key in a
    )
