"""Trainer: batches, updates, evaluations and checkpoints, with the callbacks around them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gptkit.contract.recorder import Recorder
from gptkit.data.split import Split
from gptkit.model.gpt import GPT
from gptkit.plugin import Data, TrainState
from gptkit.recipe.options import TrainOptions
from gptkit.recipe.sizes import Trained
from gptkit.training import allocator, finite, groups, micro_batches, optimizer, sharding, snapshot
from gptkit.training.callbacks import Callbacks
from gptkit.training.checkpoints import Checkpoints
from gptkit.training.device import RunDevice
from gptkit.training.distributed import ALONE, Ranks
from gptkit.training.failure import Failure
from gptkit.training.finite import FiniteCheck
from gptkit.training.preview import previewer
from gptkit.training.reader import Interrupted, Reader
from gptkit.training.snapshot import Snapshot
from gptkit.training.start import Start
from gptkit.training.steps import total_steps
from gptkit.training.usage import Usage
from gptkit.training.validation import Validation


class Trainer:
    """Trains one model on one data set.

    Args:
        model: a new or loaded GPT; moved to the device, or only a part of it with `shard`, for
            which it may be on the meta device.
        data: what to train and evaluate on.
        options: the recipe's table `[train]`.
        run_device: where and in which precision to run.
        ranks: the processes that train together.
        seed: determines the order of the data, and the weights of a model on the meta device;
            dropout uses torch's own generators.
        dataset: the data set's name, for errors.
        callbacks: run at the events of training.
        recipe: the complete recipe as JSON values, for callbacks.
        trained: how much of the model is trained; None: all of it.
        run_dir: the run folder, for callbacks that write.
        check: raises a RunError after a step if the run folder is gone.
        save: writes a checkpoint and returns its folder, on rank 0 or, with `shard`, on all ranks;
            None writes none.

    Raises:
        UsageError: the batch cannot be divided evenly among the ranks.
    """

    def __init__(
        self,
        model: GPT,
        data: Data,
        *,
        options: TrainOptions,
        run_device: RunDevice,
        seed: int,
        dataset: str = "of this training",
        ranks: Ranks = ALONE,
        callbacks: Callbacks | None = None,
        recipe: Mapping[str, Any] | None = None,
        trained: Trained | None = None,
        run_dir: Path | None = None,
        check: Callable[[], None] = lambda: None,
        save: Callable[[Snapshot], Path] | None = None,
    ) -> None:
        self.model, self.data, self.ranks = model, data, ranks
        self.options, self.run_device = options, run_device
        self.seed, self.trained, self._check = seed, trained, check
        self.callbacks = Callbacks() if callbacks is None else callbacks
        self.part = ranks.batch_slice(options.batch_size)
        """This rank's part of the step's batch."""
        self.module = sharding.parallelize(
            model,
            ranks,
            device=run_device.device,
            shard=options.shard,
            compiled=run_device.compile,
            seed=seed,
        )
        """The module to call in training: the model, or DDP around it."""
        self.finite_check = FiniteCheck(model, ranks)
        self.validation = Validation(
            model, data, dataset=dataset, options=options, run_device=run_device, ranks=ranks
        )
        self.reader = Reader(
            data, seed=seed, ranks=ranks, name=dataset, interrupted=lambda: self._interrupted
        )
        self.state = TrainState(
            model=model,
            optimizer=optimizer.make_optimizer(model, options.optimizer),
            codec=data.codec,
            steps=total_steps(
                options,
                block_size=data.block_size,
                windows=len(data.train),
                stride=data.train.stride,
            ),
            batch_size=options.batch_size,
            block_size=data.block_size,
            recipe=recipe or {},
            run_dir=run_dir if ranks.first else None,
            rank=ranks.rank,
            sample=self.sample,
            evaluate=self.measure,
            recorder=Recorder(
                Usage(model.config, run_device, processes=ranks.size, trained=trained)
            ),
        )
        self._preview = previewer(model, data.codec)
        self._interrupted, self._failure = False, Failure(ranks)
        self._start = Start(self.state, model, run_device.device)
        self.checkpoints = Checkpoints(
            *(save, self.state),
            ranks=ranks,
            together=options.shard,
            failure=self._failure,
            take=self._take_snapshot,
            emit=self.emit,
        )

    def fit(self) -> TrainState:
        """Train until the recipe's last step, or until something sets `state.stop`.

        Raises:
            DivergedError: the loss or a gradient is not finite.
            Exception: of a callback or the data set; the latest complete step was saved before.
        """
        for _ in self.steps():
            pass
        return self.state

    def steps(self) -> Iterator[TrainState]:
        """`fit` as an iterator: yields after each step and its evaluation.

        A large checkpoint may still be being written then, but not after the last step.
        """
        state, callbacks = self.state, self.callbacks
        with ExitStack() as stack:
            sharded = self.options.shard and self.ranks.size > 1
            stack.enter_context(allocator.for_training(self.run_device.device, sharded=sharded))
            stack.callback(self.reader.close)
            stack.callback(callbacks.tell_failures, state)
            for name in reversed([*callbacks]):
                stack.callback(callbacks.call, name, "on_fit_end", state)
            stack.push(self._keep_error)
            stack.push(self.checkpoints.end)
            self._failure.forget()
            self._start.emit(callbacks)
            self.model.train()
            while state.step < state.steps and not self.stopping():
                done = state.step
                with self._failure.kept(), suppress(Interrupted):
                    self.step()
                if state.step == done:  # it failed before it began, or its batch did not come
                    continue
                self._check()
                if self._due(self.options.eval_every):
                    with self._failure.kept(), suppress(Interrupted):
                        self.evaluate()
                with self._failure.kept():
                    if self._due(self.options.save_every or self.options.eval_every):
                        self.checkpoints.save(wait=state.step == state.steps)
                    else:
                        self.checkpoints.finish(wait=False)
                yield state
            if self.stopping():
                self._end_early()

    def interrupt(self) -> None:
        """End training after the current step, for a signal; callbacks cannot undo it.

        A step whose batch is still awaited does not begin, unless several processes train.
        """
        self._interrupted = True

    def stopping(self) -> bool:
        """Whether a callback, a signal or a failure stops training, on any rank.

        The same on all ranks.
        """
        failed = self._failure.error is not None
        return self.ranks.any(self.state.stop or self._interrupted or failed)

    def step(self) -> None:
        """One update: batch, forward, backward, optimizer, with the callbacks around them."""
        self.state.begin_step()
        with self._failure.together():
            self.callbacks.emit("on_step_start", self.state)
            self.reset()
            batches = self.micro_batches()
            of_data = self.data.train.metrics(self.seed, self.state.step + 1, self.state.batch_size)
        with self._failure.final():
            for x, y, weight in sharding.accumulating(self.module, batches):
                self.backward(self.loss(x, y) * weight)
            self.check_step()
            self.callbacks.emit("on_backward_end", self.state)
            self.state.optimizer.step()
        self.state.step += 1
        self.state.metrics |= of_data
        self.state.tokens += self.batch_tokens
        self.emit("on_step_end")

    def reset(self) -> None:
        """Clear gradients and loss for a new step; seed the dropout of all ranks but the first.

        Raises:
            PluginError: a callback set a batch size that cannot be divided among the ranks.
        """
        self.part = micro_batches.part_of(self.state.batch_size, self.ranks)
        self.batch_tokens = self.state.tokens_per_step
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.loss = torch.zeros((), device=self.run_device.device)
        self.ranks.reseed(self.seed, self.state.step)

    def micro_batches(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """This rank's part of the step's batch, in micro-batches: x, y (b, T) and a loss weight."""
        state, put = self.state, self.run_device.put
        batch = self.reader.read(state.step, state.batch_size)
        size = micro_batches.size_in(self.part, self.options.micro_batch_size)
        name = f"the batch of step {state.step + 1} of the data set {self.reader.name}"
        return micro_batches.divide(batch, size, ranks=self.ranks, put=put, name=name)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss of a micro-batch in the run's precision."""
        # A cache would hold the full weights under FSDP2.
        with self.run_device.autocast(cache=False):
            marks = self.data.document_start, self.data.document_end
            loss: Tensor = self.module(x, y, *marks)
        return loss

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients; the loss stays on the device: .item() would stall it."""
        # From here on Python has little to do, so that a data set in Python can run beside it.
        if self.state.step + 1 < self.state.steps:
            self.reader.read_ahead(self.state.step + 1, self.state.batch_size)
        loss.backward()  # type: ignore[no-untyped-call]
        self.state.loss += loss.detach()

    def check_step(self) -> None:
        """Average the loss over the ranks; stop training if it or a gradient is not finite.

        Raises:
            DivergedError: names the step and what is not finite.
        """
        state = self.state
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        state.grad_norm = sharding.full_tensor(nn.utils.get_total_norm(gradients))
        state.loss = self.ranks.all_reduce_mean(state.loss)
        self.finite_check.after_step(state.step + 1, state.loss, state.grad_norm)

    def evaluate(self) -> None:
        """Measure the losses of the model and of further sets of weights; emit `on_eval_end`.

        Raises:
            DivergedError: a weight or a loss is not finite.
        """
        with self._failure.together():
            self.finite_check.before_save(self.state.step)
            self.state.recorder.stop()
            self.reader.wait()
            self.validation.update(self.state, self.callbacks)
        self.emit("on_eval_end")

    def measure(
        self, split: Literal["val", "train"] | Split = "val", *, batches: int | None = None
    ) -> float:
        """The loss of the current weights, for callbacks: see `TrainState.evaluate`."""
        self.reader.wait()
        with self.state.recorder.paused(), self._failure.together():
            what = f"step {self.state.step}: the loss"
            return self.validation.measure(split, batches=batches, what=what)

    def sample(self, tokens: int, seed: int, prompt: str = "") -> bytes:
        """Draw from the current weights, for callbacks: see `TrainState.sample`."""
        with self._failure.together():
            return self._preview(tokens, seed, prompt)

    def emit(self, event: str) -> None:
        """Call an event's method on every callback after a complete step."""
        self.callbacks.emit_to_all(event, self.state, final=self._failure.is_final)

    def save(self) -> None:
        """Write a checkpoint of the current step, unless there is one.

        Raises:
            CheckpointError: it, or the one before it, cannot be written.
            DivergedError: a weight or a loss is not finite.
            PluginError: a callback set a batch size that cannot be divided among the ranks.
        """
        self.checkpoints.save(wait=True)

    def _take_snapshot(self) -> Snapshot:
        """Capture the training, if the weights are good."""
        self.finite_check.before_save(self.state.step)
        self.state.recorder.stop()
        if self.state.val_step != self.state.step:
            # Another shape would be compiled anew.
            with self.run_device.autocast(), torch.compiler.set_stance("force_eager"):
                finite.try_model(self.model, f"step {self.state.step}")
        size = self.state.batch_size
        micro_batches.part_of(size, self.ranks)  # a resumed run could not continue with a wrong one
        changed = size if size != self.options.batch_size else None
        return snapshot.take(
            self.state,
            self.model,
            self.callbacks,
            first_groups=self._start.groups,
            batch_size=changed,
        )

    def load(self, saved: Snapshot) -> None:
        """Continue from a snapshot, exactly.

        Raises:
            CheckpointError: it was taken with another model or optimizer.
        """
        groups.check(self.state.optimizer, self.model, saved.optimizer_groups)
        snapshot.restore(saved, self.state, self.model, self.callbacks)
        self._start.resume(saved)
        self.checkpoints.saved_step = saved.step

    def _end_early(self) -> None:
        """Save, and keep for `on_fit_end` whether a signal was the reason; raise what failed."""
        if self.ranks.any(self._interrupted) and self.state.step < self.state.steps:
            self.state.error = KeyboardInterrupt()
        with self._failure.kept():
            self.checkpoints.finish(wait=True)
        if self._failure.error is None:
            self.save()
        else:
            self._failure.raise_after(
                self.save, self.state.step, lambda: self.checkpoints.saved_step
            )

    def _keep_error(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and not isinstance(error, GeneratorExit):
            self.state.error = error

    def _due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.state.steps
