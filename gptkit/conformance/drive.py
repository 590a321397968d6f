"""A small training that calls a callback, for tests."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gptkit.codec import TextCodec
from gptkit.contract.train_state import check_batch_size
from gptkit.plugin import Callback, TrainState


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
    model = nn.Linear(4, 3)
    group = {"name": "decayed", "params": list(model.parameters()), "initial_lr": 0.1}
    return TrainState(
        model=model,
        optimizer=torch.optim.AdamW([group], lr=0.1),
        codec=LetterCodec(),
        steps=steps,
        batch_size=8,
        block_size=8,
        recipe={
            "seed": 1337,
            "dataset": {"use": "letters"},
            "model": {"n_layer": 1},
            "train": {"steps": steps, "batch_size": 8, "optimizer": {"use": "adamw"}},
            "callbacks": [],
        },
        run_dir=run_dir,
        sample=lambda tokens, seed, prompt="": b"abc",
        evaluate=lambda split="val", *, batches=None: _loss(model).item(),
    )


def drive(callback: Callback, state: TrainState, *, until: int | None = None) -> None:
    """Run a callback through the remaining steps of `state`.

    After each step there is an evaluation, of the weights that the callback offers, too, and a
    checkpoint, whose folder holds a state.json and nothing else.

    Args:
        callback: with all that a training has given it before: its state and its weights.
        state: from `make_state`, or one that an earlier call has left.
        until: end after this step, as a signal does.
    """
    groups = [dict(group) for group in state.optimizer.param_groups]
    size, generator = state.batch_size, torch.get_rng_state()
    try:
        callback.on_fit_start(state)
        if state.step:  # as in a resumed run
            state.optimizer.param_groups[:], state.batch_size = groups, size
            torch.set_rng_state(generator)
        while state.step < (until or state.steps) and not state.stop:
            _step(callback, state)
            _evaluate(callback, state)
            callback.on_eval_end(state)
            _save(state)
            callback.on_save_end(state)
            check_batch_size(state.batch_size)
        state.error = KeyboardInterrupt() if until and state.step == until else None
    except BaseException as error:
        state.error = error
        raise
    finally:
        callback.on_fit_end(state)


def _step(callback: Callback, state: TrainState) -> None:
    state.begin_step()
    callback.on_step_start(state)
    check_batch_size(state.batch_size)
    tokens = state.tokens_per_step
    state.optimizer.zero_grad()
    loss = _loss(state.model)
    loss.backward()  # type: ignore[no-untyped-call]
    state.loss = loss.detach()
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    state.grad_norm = nn.utils.get_total_norm(gradients)
    callback.on_backward_end(state)
    state.optimizer.step()
    state.step += 1
    state.tokens += tokens
    callback.on_step_end(state)
    state.recorder.stop()


def _evaluate(callback: Callback, state: TrainState) -> None:
    state.val_loss, state.val_step = state.loss.item(), state.step
    weights = callback.weights() or {}
    _check_weights(weights, state.model, f"{type(callback).__name__}.weights")
    state.val_losses = {name: _loss(state.model, own).item() for name, own in weights.items()}


def _check_weights(
    weights: Mapping[str, Mapping[str, Tensor]], model: nn.Module, what: str
) -> None:
    """Assert that sets of weights are named and shaped as the core demands."""
    shapes = {name: [*parameter.shape] for name, parameter in model.named_parameters()}
    for name, tensors in weights.items():
        assert re.fullmatch("[a-z0-9_-]+", name), f'{what}: "{name}" must be of a-z, 0-9, "-", "_"'
        found = {key: [*tensor.shape] for key, tensor in tensors.items()}
        assert found == shapes, f"{what} must have the model's shapes {shapes}, not {found}"


def _save(state: TrainState) -> None:
    if state.run_dir:
        state.checkpoint = state.run_dir / "checkpoints" / f"step-{state.step:08d}"
        state.checkpoint.mkdir(parents=True, exist_ok=True)
        (state.checkpoint / "state.json").write_text(json.dumps({"step": state.step}))


def _loss(model: nn.Module, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """The mean square of the model's outputs, with its own weights or others."""
    found: Tensor = torch.func.functional_call(model, dict(weights or {}), (torch.ones(2, 4),))
    return found.square().mean()
