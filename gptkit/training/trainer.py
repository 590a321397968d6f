"""Trainer: batches, updates, evaluations and checkpoints, with the callbacks around them."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from gptkit.data.order import batch_indices, walk
from gptkit.model.gpt import GPT
from gptkit.plugin import IGNORE, Callback, Data, Split, TrainState
from gptkit.recipe.options import TrainOptions
from gptkit.runs import checkpoint
from gptkit.sampling.torch_decoder import evaluating
from gptkit.training import optimizer, sharding, snapshot
from gptkit.training.device import RunDevice
from gptkit.training.distributed import ALONE, Ranks
from gptkit.training.finite import FiniteCheck


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
        model: a fresh or loaded GPT; moved to the placement's device, or in part with `shard`.
        data: what to train and evaluate on.
        options: the recipe's table `[train]`.
        placement: where and in which precision to run.
        ranks: the processes that train together.
        seed: determines the order of the data; dropout follows torch's own generators.
        callbacks: by the name that errors give them, in the order in which they run.
        run_dir: the run folder, for callbacks that write.
        record: what checkpoints say besides the training's own state; None saves none.

    Raises:
        UsageError: the batch cannot be shared out evenly among the ranks.
    """

    def __init__(
        self,
        model: GPT,
        data: Data,
        *,
        options: TrainOptions,
        run_device: RunDevice,
        seed: int,
        ranks: Ranks = ALONE,
        callbacks: Mapping[str, Callback] | None = None,
        run_dir: Path | None = None,
        record: checkpoint.Record | None = None,
    ) -> None:
        self.model, self.data, self.ranks = model, data, ranks
        self.options, self.run_device = options, run_device
        self.seed, self.callbacks, self.record = seed, dict(callbacks or {}), record
        self.part = ranks.batch_slice(options.batch_size)
        model.recompute = options.recompute
        self.module = sharding.parallelize(
            model, ranks, device=run_device.device, shard=options.shard, compiled=run_device.compile
        )
        """What is called to train: the model, or DDP around it."""
        self.watch = FiniteCheck(model)
        self.state = TrainState(
            model=model,
            optimizer=optimizer.make_optimizer(model, options),
            codec=data.codec,
            steps=options.steps,
            tokens_per_step=options.batch_size * data.block_size,
            run_dir=run_dir if ranks.first else None,
            rank=ranks.rank,
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
            while state.step < state.steps and not self.stopping():
                self.step()
                if self._due(self.options.eval_every):
                    self.evaluate()
                if self._due(self.options.save_every or self.options.eval_every):
                    self.save()
            if self.stopping():
                self.save()
        return state

    def stopping(self) -> bool:
        """Whether a callback or a signal asked for the end, on whichever rank; all agree."""
        return self.ranks.any(self.state.stop or self.interrupted)

    def step(self) -> None:
        """One update: batch, forward, backward, optimizer, with the callbacks around them."""
        self.emit("on_step_start")
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.loss = torch.zeros((), device=self.run_device.device)
        self.ranks.reseed(self.seed, self.state.step)
        for x, y, share in sharding.accumulating(self.module, self.micro_batches()):
            self.backward(self.loss(x, y) * share)
        self.check_finite()
        self.emit("on_backward_end")
        self.state.optimizer.step()
        self.state.step += 1
        self.emit("on_step_end")

    def micro_batches(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """What this rank computes of the step's batch, in parts: x, y (b, T) and their weight.

        It is the part's share of the targets that count on all ranks, times the number of ranks,
        over which losses and gradients are averaged.
        """
        size, ranks, put = len(self.data.train), self.ranks, self.run_device.put
        indices = batch_indices(size, self.options.batch_size, seed=self.seed, step=self.state.step)
        x, y = self.data.train[indices[self.part]]
        counted = ranks.all_reduce_sum(int((y != IGNORE).sum()))
        for i in range(0, len(x), self.rows):
            x_part, y_part = x[i : i + self.rows], y[i : i + self.rows]
            share = int((y_part != IGNORE).sum()) / max(counted, 1) * ranks.size
            if share:
                yield put(x_part), put(y_part), share
            elif ranks.size > 1:  # no targets have no mean loss, but the others wait for gradients
                yield put(x_part), put(x_part), 0.0

    @property
    def rows(self) -> int:
        """Sequences per forward pass: micro_batch_size, or what divides it and a rank's part."""
        part = self.part.stop - self.part.start
        return math.gcd(part, self.options.micro_batch_size or part)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss of a batch in the run's precision."""
        with self.run_device.autocast(cache=False):  # of a sharded model it would hold every weight
            loss: Tensor = self.module(x, y)
        return loss

    def backward(self, loss: Tensor) -> None:
        """Add a part's gradients; the loss stays on the device, `.item()` here would stall it."""
        loss.backward()  # type: ignore[no-untyped-call]
        self.state.loss += loss.detach()

    def check_finite(self) -> None:
        """Sum up the step, and end training where its loss or a gradient is not finite.

        Raises:
            DivergedError: names the step and the first bad tensor.
        """
        state, ranks = self.state, self.ranks
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        state.grad_norm = sharding.full_tensor(nn.utils.get_total_norm(gradients))
        state.loss = ranks.all_reduce_mean(state.loss)
        self.watch.after_step(state.step + 1, state.loss, state.grad_norm)

    def evaluate(self) -> None:
        """Measure the validation loss, then tell the callbacks.

        Raises:
            DivergedError: a weight is not finite.
        """
        self.watch.before_save(self.state.step)
        limit = self.options.eval_batches
        if limit:  # in batches of the recipe's size, of which a rank takes only a part at once
            size = self.options.micro_batch_size or self.options.batch_size
            limit *= size // self.rows
        result = evaluate(
            self.model,
            self.data.val,
            run_device=self.run_device,
            batch_size=self.rows,
            batches=limit,
            ranks=self.ranks,
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
        """Write a checkpoint of this moment, unless there is one.

        Raises:
            CheckpointError: it cannot be written.
            DivergedError: a weight is not finite.
        """
        if self.record is None or self.saved_step == self.state.step:
            return
        self.watch.before_save(self.state.step)
        moment, files = snapshot.take(self.state, self.model, self.callbacks)
        if self.ranks.first:
            state = self.record.state(val_step=self.val_step, **moment)
            checkpoint.save(self.record.folder, state, files)
            checkpoint.prune(self.record.folder, self.options.keep)
        self.ranks.barrier()  # torchrun stops them all when one ends, so none may end before
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
    run_device: RunDevice,
    batch_size: int,
    batches: int | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """The loss over a whole split in fixed windows, or over its first `batches` batches.

    The ranks share the batches out; each gets the loss over all of them.
    """
    total, tokens = 0.0, 0
    with evaluating(model), run_device.autocast():
        for x, y in ranks.shard(islice(walk(split, batch_size), batches)):
            counted = int((y != IGNORE).sum())
            loss = model(run_device.put(x), run_device.put(y))
            total += loss.item() * counted if counted else 0.0
            tokens += counted
    total, tokens = ranks.all_reduce_sum(total), int(ranks.all_reduce_sum(tokens))
    return Evaluation(total / max(tokens, 1), tokens)
