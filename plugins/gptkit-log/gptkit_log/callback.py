"""The log callback: what it writes at which event."""

from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress

from pydantic import Field, NonNegativeInt, PositiveInt, PrivateAttr
from rich.console import Console

from gptkit.codec import PromptError, TextCodec
from gptkit.plugin import Callback, TrainState
from gptkit_log.display import Display, open_display
from gptkit_log.files import MetricsFile, write_file


class Log(Callback):
    """Show progress, append metrics to metrics.jsonl, and draw samples at each evaluation.

    Put it last in the recipe, so that it sees what the other callbacks recorded.
    """

    contract = 1

    every: PositiveInt = 10
    """Steps between log lines; the last step is always logged."""
    sample_tokens: NonNegativeInt = 200
    """Tokens to sample at each evaluation; 0 for no sample. Pictures are always complete."""
    sample_seed: int = Field(default=1, ge=0, lt=2**63)
    """Seed of the samples; the same at each evaluation, so that they can be compared."""
    sample_prompts: list[str] = Field(default=[""], min_length=1)
    """Prompts to continue at each evaluation; "" draws a sample from nothing."""

    _open: ExitStack | None = PrivateAttr(default=None)
    _display: Display = PrivateAttr()
    _metrics: MetricsFile | None = PrivateAttr(default=None)
    _logged: int = PrivateAttr(default=0)

    def on_fit_start(self, state: TrainState) -> None:
        """Open the display and metrics.jsonl, without the records that a resumed run repeats.

        Raises:
            PromptError: the codec cannot read a prompt.
        """
        self._check_prompts(state)
        self._open, self._metrics, self._logged = ExitStack(), None, state.step
        if state.run_dir:
            metrics = MetricsFile(state.run_dir / "metrics.jsonl", step=state.step)
            self._metrics = self._open.enter_context(closing(metrics))
            state.recorder.earlier = metrics.elapsed
        console = Console(stderr=True, quiet=state.quiet or state.rank > 0, force_jupyter=False)
        display = open_display(console, step=state.step, steps=state.steps)
        self._display = self._open.enter_context(closing(display))

    def on_step_end(self, state: TrainState) -> None:
        """Move the bar; log the step if a line is due."""
        self._display.advance(state.step)
        if state.step % self.every == 0 or state.step >= state.steps or state.stop:
            self._log(state)

    def on_eval_end(self, state: TrainState) -> None:
        """Log the validation loss, and those of further weights; draw the samples."""
        losses, _ = self._record(state)
        self._write(losses)
        self._display.show_evaluation(losses)
        if self.sample_tokens:
            for number, prompt in enumerate(self.sample_prompts, 1):
                self._sample(state, prompt, f"-{number}" if len(self.sample_prompts) > 1 else "")

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
        if self._logged == state.step:
            return
        self._logged = state.step
        _, record = self._record(state)
        self._write(record)
        if rate := record.get("tokens_per_second"):
            record["eta"] = (state.steps - state.step) * state.tokens_per_step / rate
        self._display.show(record)

    def _record(self, state: TrainState) -> tuple[dict[str, float], dict[str, float]]:
        """The losses of an evaluation at this step, and everything else; both with the step."""
        record = state.record()
        names = ("val_loss", *(f"val_loss_{name}" for name in state.val_losses))
        losses = {name: record.pop(name) for name in names if name in record}
        return {"step": record["step"]} | losses, record

    def _write(self, record: Mapping[str, float]) -> None:
        if self._metrics:
            self._metrics.write(record)

    def _check_prompts(self, state: TrainState) -> None:
        for prompt in self.sample_prompts:
            try:
                state.codec.start(prompt)
            except PromptError as error:
                raise PromptError(
                    f"sample_prompts: {prompt!r}: {error}", hint=error.hint
                ) from error

    def _sample(self, state: TrainState, prompt: str, number: str) -> None:
        # Every rank draws, since sharded weights need all ranks; only rank 0 has a run folder.
        sample = state.sample(self.sample_tokens, self.sample_seed, prompt)
        if state.run_dir:
            name = f"step-{state.step:08}{number}{state.codec.suffix}"
            write_file(state.run_dir / "samples" / name, sample)
        if isinstance(state.codec, TextCodec):
            self._display.show_sample(sample.decode(errors="replace"))
