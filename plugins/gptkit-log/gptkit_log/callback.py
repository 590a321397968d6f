"""The log callback: which values it reads at which event, and where it writes them."""

from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress

from pydantic import Field, NonNegativeInt, PositiveInt, PrivateAttr
from rich.console import Console
from torch import Tensor

from gptkit.plugin import Callback, TrainState
from gptkit_log.display import Display, open_display, quote
from gptkit_log.files import MetricsFile, write_file
from gptkit_log.speed import Speed


class Log(Callback):
    """Show progress, append metrics to metrics.jsonl, and draw a sample at each evaluation.

    Put it last in the recipe, so that it sees what the other callbacks recorded.
    """

    contract = 1

    every: PositiveInt = 10
    """Steps between log lines; the last step is always logged."""
    sample_tokens: NonNegativeInt = 200
    """Tokens to sample at each evaluation; 0 for no sample. Pictures are always complete."""
    sample_seed: int = Field(default=1, ge=0, lt=2**63)
    """Seed of the samples; the same at each evaluation, so that they can be compared."""

    _open: ExitStack | None = PrivateAttr(default=None)
    _display: Display = PrivateAttr()
    _metrics: MetricsFile | None = PrivateAttr(default=None)
    _speed: Speed = PrivateAttr()
    _pending: dict[str, float | Tensor] = PrivateAttr(default_factory=dict)

    def on_fit_start(self, state: TrainState) -> None:
        """Open the display and metrics.jsonl, without the records that a resumed run repeats."""
        self._open = ExitStack()
        self._metrics, self._speed = None, Speed()
        if state.run_dir:
            metrics = MetricsFile(state.run_dir / "metrics.jsonl", step=state.step)
            self._metrics = self._open.enter_context(closing(metrics))
            self._speed = Speed(elapsed=metrics.elapsed)
        console = Console(stderr=True, quiet=state.rank > 0)
        display = open_display(console, step=state.step, steps=state.steps)
        self._display = self._open.enter_context(closing(display))

    def on_step_start(self, state: TrainState) -> None:
        """Start the clock."""
        self._speed.start(state.tokens)

    def on_step_end(self, state: TrainState) -> None:
        """Keep the step's values; log them if a line is due."""
        self._display.advance(state.step)
        self._pending = {
            "step": state.step,
            "loss": state.loss,
            "lr": state.optimizer.param_groups[0]["lr"],
            **state.metrics,
            "tokens": state.tokens,
        }
        if state.step % self.every == 0 or state.step >= state.steps or state.stop:
            self._log(state)

    def on_eval_end(self, state: TrainState) -> None:
        """Log the validation loss and draw a sample."""
        if state.val_loss is not None:
            self._write({"step": state.step, "val_loss": state.val_loss})
            self._display.show_evaluation(state.step, state.val_loss)
        if self.sample_tokens:
            self._sample(state)
        self._speed.stop()

    def on_fit_end(self, state: TrainState) -> None:
        """Log the last step if it has no line yet; close the file and the display."""
        if self._open is None:
            return
        with self._open:
            # After a device error no value can be read; that error is already being raised.
            with suppress(RuntimeError):
                self._log(state)
        self._open = None

    def _log(self, state: TrainState) -> None:
        pending, self._pending = self._pending, {}
        if not pending:
            return
        # float() waits until the device has finished the step; nothing else here waits for it.
        record = {k: v if isinstance(v, int) else float(v) for k, v in pending.items()}
        eta = {}
        if rate := self._speed.measure(record["tokens"]):
            record["tokens_per_second"] = round(rate, 1)
            eta["eta"] = (state.steps - record["step"]) * state.tokens_per_step / rate
        record["elapsed"] = round(self._speed.elapsed, 3)
        self._write(record)
        self._display.show(record | eta)

    def _write(self, record: Mapping[str, float]) -> None:
        if self._metrics:
            self._metrics.write(record)

    def _sample(self, state: TrainState) -> None:
        # Every rank draws, since sharded weights need all ranks; only rank 0 has a run folder.
        sample, suffix = state.sample(self.sample_tokens, self.sample_seed), state.codec.suffix
        if state.run_dir:
            write_file(state.run_dir / "samples" / f"step-{state.step:08}{suffix}", sample)
        if suffix == ".txt":
            self._display.say(quote(sample.decode(errors="replace")))
