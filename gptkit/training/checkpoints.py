"""Checkpoints: takes snapshots of a training, has them written, and tells the callbacks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptkit.plugin import TrainState
from gptkit.training.callbacks import note_later
from gptkit.training.distributed import Ranks
from gptkit.training.failure import Failure
from gptkit.training.saving import Saving
from gptkit.training.snapshot import Snapshot


class Checkpoints:
    """The checkpoints of one training. All ranks call the same methods in the same order.

    Args:
        write: writes a snapshot and returns its step folder; None writes none.
        state: of the training.
        ranks: the processes that train together.
        together: whether all of them write, each its part, or the first one alone.
        failure: gets what ends the training at once.
        take: captures the training, if its weights are good.
        emit: calls an event's method on every callback.
    """

    def __init__(
        self,
        write: Callable[[Snapshot], Path] | None,
        state: TrainState,
        *,
        ranks: Ranks,
        together: bool,
        failure: Failure,
        take: Callable[[], Snapshot],
        emit: Callable[[str], None],
    ) -> None:
        self._saving = Saving(write, ranks, together=together) if write else None
        self._state, self._ranks, self._failure = state, ranks, failure
        self._take, self._emit = take, emit
        self.saved_step: int | None = None
        """Of the latest complete checkpoint."""

    def save(self, *, wait: bool) -> None:
        """Write a checkpoint of the current step, unless there is one.

        Args:
            wait: return when it is complete. Otherwise, if it is large and memory has room for a
                copy, training goes on while it is written, until `finish`.

        Raises:
            CheckpointError: it, or the one before it, cannot be written.
            DivergedError, PluginError: the training cannot be captured.
        """
        saving = self._saving
        if saving is None:
            return
        if self._state.step not in (self.saved_step, saving.step):
            self.finish(wait=True)
            with self._failure.final():
                saving.begin(self._take(), beside=not wait)
        self.finish(wait=wait)

    def finish(self, *, wait: bool) -> None:
        """Emit `on_save_end` if the checkpoint that is being written is complete.

        Args:
            wait: until it is complete.

        Raises:
            CheckpointError: it cannot be written.
        """
        saving, state = self._saving, self._state
        if saving is None or saving.step is None:
            return
        if not wait and self._ranks.any(not saving.done):
            return
        state.recorder.stop()
        with self._failure.final():
            step, folder = saving.step, saving.finish()
            self._ranks.barrier()  # torchrun stops all ranks when one ends: none may end early
        state.checkpoint = folder if self._ranks.first else None
        self.saved_step = step
        self._emit("on_save_end")

    def end(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Wait for what is being written when training ends; arguments as for `__exit__`.

        After an error on several ranks without an event: another one may have ended.
        """
        failed = error is not None and not isinstance(error, GeneratorExit)
        try:
            if not failed or self._ranks.size == 1:
                self.finish(wait=True)
            elif self._saving:
                self._saving.finish()
        except Exception as fault:
            if not error or not failed:
                raise
            note_later(error, fault)
