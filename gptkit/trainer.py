"""Trainer: batches, updates, evaluations and checkpoints, with the callbacks around them."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gptkit import checkpoint, optimizer, snapshot
from gptkit.config import TrainOptions
from gptkit.data import batch_indices, walk
from gptkit.decoder import evaluating
from gptkit.device import Placement
from gptkit.errors import DivergedError
from gptkit.model import GPT
from gptkit.plugin import IGNORE, Callback, Data, Split, TrainState


@dataclass(frozen=True)
class Evaluation:
    """The mean loss over a split, in nats per token, and how many tokens it was measured on."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))  # beyond, a float overflows

    @property
    def bits_per_token(self) -> float:
        """Loss in bits."""
        return self.loss / math.log(2)


class Trainer:
    """Trains one model on one data set.

    Args:
        model: a fresh or loaded GPT; moved to the placement's device.
        data: what to train and evaluate on.
        options: the recipe's table `[train]`.
        placement: where and in which precision to run.
        seed: determines the order of the data; dropout follows torch's own generators.
        callbacks: by the name that errors give them, in the order in which they run.
        run_dir: the run folder, for callbacks that write.
        record: what checkpoints say besides the training's own state; None saves none.
    """

    def __init__(
        self,
        model: GPT,
        data: Data,
        *,
        options: TrainOptions,
        placement: Placement,
        seed: int,
        callbacks: Mapping[str, Callback] | None = None,
        run_dir: Path | None = None,
        record: checkpoint.Record | None = None,
    ) -> None:
        self.model, self.data = model.to(placement.device), data
        self.options, self.placement = options, placement
        self.seed, self.callbacks, self.record = seed, dict(callbacks or {}), record
        if placement.compile:
            model.compile()  # the call model(x, y) alone; everything else stays as it is
        self.state = TrainState(
            model=model,
            optimizer=optimizer.make_optimizer(model, options),
            codec=data.codec,
            steps=options.steps,
            tokens_per_step=options.batch_size * data.block_size,
            run_dir=run_dir,
        )
        self.interrupted = False
        """Set from outside to end training after this step; no callback can take it back."""
        self.val_step: int | None = None
        self.saved_step: int | None = None

    def fit(self) -> TrainState:
        """Train until the recipe's last step, or until something sets `state.stop`.

        Raises:
            DivergedError: the loss or a gradient is not finite.
        """
        state = self.state
        with ExitStack() as stack:
            for name in reversed(self.callbacks):
                stack.callback(self.call, name, "on_fit_end")
            self.emit("on_fit_start")
            self.model.train()
            while state.step < state.steps and not self.stopping:
                self.step()
                if self._due(self.options.eval_every):
                    self.evaluate()
                if self._due(self.options.save_every or self.options.eval_every):
                    self.save()
            if self.stopping:
                self.save()
        return state

    @property
    def stopping(self) -> bool:
        """Whether a callback or a signal asked for the end."""
        return self.state.stop or self.interrupted

    def step(self) -> None:
        """One update: batch, forward, backward, optimizer, with the callbacks around them."""
        self.emit("on_step_start")
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.loss = torch.zeros((), device=self.placement.device)
        for x, y, share in self.micro_batches():
            self.backward(self.loss(x, y) * share)
        self.check_finite()
        self.emit("on_backward_end")
        self.state.optimizer.step()
        self.state.step += 1
        self.emit("on_step_end")

    def micro_batches(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """This step's batch in parts: x, y (b, T) and the part's share of the counted targets."""
        size, options = len(self.data.train), self.options
        indices = batch_indices(size, options.batch_size, seed=self.seed, step=self.state.step)
        x, y = self.data.train[indices]
        counted = int((y != IGNORE).sum())
        rows = options.micro_batch_size or options.batch_size
        for i in range(0, options.batch_size, rows):
            x_part, y_part = x[i : i + rows], y[i : i + rows]
            share = int((y_part != IGNORE).sum()) / max(counted, 1)
            if share:  # a part without targets has no mean loss
                yield x_part.to(self.placement.device), y_part.to(self.placement.device), share

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss of a batch in the run's precision."""
        with self.placement.autocast():
            loss: Tensor = self.model(x, y)
        return loss

    def backward(self, loss: Tensor) -> None:
        """Add a part's gradients; the loss stays on the device, `.item()` here would stall it."""
        loss.backward()  # type: ignore[no-untyped-call]
        self.state.loss += loss.detach()

    def check_finite(self) -> None:
        """Stop before the weights are touched where the loss or a gradient is not finite.

        Raises:
            DivergedError: names the step and the first bad tensor.
        """
        named = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        norm = nn.utils.get_total_norm(named.values())
        if math.isfinite((self.state.loss + norm).item()):  # waits for the device, once a step
            return
        bad = [f"the gradient of {n}" for n, g in named.items() if not g.isfinite().all()][:1]
        if not self.state.loss.isfinite():
            bad.insert(0, "the loss")
        what = " and ".join(bad) or "the norm of the gradients"
        raise DivergedError(
            f"step {self.state.step + 1}: {what} {'are' if len(bad) > 1 else 'is'} not finite",
            hint="the weights were not touched, and every checkpoint is from before. Try a lower "
            "train.learning_rate, more warm-up or the grad-clip callback",
        )

    def evaluate(self) -> None:
        """Measure the validation loss, then tell the callbacks."""
        result = evaluate(
            self.model,
            self.data.val,
            placement=self.placement,
            batch_size=self.options.micro_batch_size or self.options.batch_size,
            batches=self.options.eval_batches,
        )
        self.state.val_loss, self.val_step = result.loss, self.state.step
        self.emit("on_eval_end")

    def emit(self, event: str) -> None:
        """Call an event's method on every callback, in order."""
        for name in self.callbacks:
            self.call(name, event)

    def call(self, name: str, event: str) -> None:
        """Call one callback; its exception gets a note that says which, when and where."""
        try:
            getattr(self.callbacks[name], event)(self.state)
        except Exception as error:
            error.add_note(f"raised by {name} in {event} at step {self.state.step}")
            raise

    def save(self) -> None:
        """Write a checkpoint of this moment, unless there is one."""
        if self.record is None or self.saved_step == self.state.step:
            return
        moment, files = snapshot.take(self.state, self.model, self.callbacks)
        state = self.record.state(val_step=self.val_step, **moment)
        checkpoint.save(self.record.folder, state, files)
        checkpoint.prune(self.record.folder, self.options.keep)
        self.saved_step = self.state.step

    def load(self, state: checkpoint.State, files: Mapping[str, checkpoint.Tensors]) -> None:
        """Continue from a checkpoint, exactly.

        Raises:
            CheckpointError: it was saved with another model, optimizer or other callbacks.
        """
        snapshot.restore(self.state, self.model, self.callbacks, saved=state, files=files)
        self.saved_step, self.val_step = state.step, state.val_step

    def _due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.state.steps


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    placement: Placement,
    batch_size: int,
    batches: int | None = None,
) -> Evaluation:
    """The loss over a whole split in fixed windows, or over its first `batches` batches."""
    total, tokens = 0.0, 0
    with evaluating(model), placement.autocast():
        for i, (x, y) in enumerate(walk(split, batch_size)):
            if i == batches:
                break
            counted = int((y != IGNORE).sum())
            loss = model(x.to(placement.device), y.to(placement.device))
            total += loss.item() * counted if counted else 0.0
            tokens += counted
    return Evaluation(total / max(tokens, 1), tokens)
