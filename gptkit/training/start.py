"""`on_fit_start`; a resumed run keeps nothing of it that it has already."""

import torch

from gptkit.model.gpt import GPT
from gptkit.plugin import TrainState
from gptkit.training import groups, snapshot
from gptkit.training.callbacks import Callbacks
from gptkit.training.snapshot import Snapshot


class Start:
    """Emits `on_fit_start`; if steps were done before, undoes what callbacks did there again.

    They may have split or changed the parameter groups, set a batch size, or drawn random numbers.

    Args:
        state: of the training.
        model: its model.
        device: whose random numbers are restored.
    """

    def __init__(self, state: TrainState, model: GPT, device: torch.device) -> None:
        self.state, self.model, self.device = state, model, device
        self.groups: groups.Groups = []
        """The parameter groups after `on_fit_start` when the run began."""
        self._saved: Snapshot | None = None

    def resume(self, saved: Snapshot) -> None:
        """Continue from a snapshot, which was restored."""
        self._saved = saved

    def emit(self, callbacks: Callbacks) -> None:
        """Emit the event."""
        state = self.state
        before, size = groups.describe(state.optimizer, self.model), state.batch_size
        generators = snapshot.generator_states(self.device)
        callbacks.emit("on_fit_start", state)
        if self._saved is None and not state.step:
            self.groups = groups.describe(state.optimizer, self.model)
            return
        state.batch_size = size
        snapshot.set_generator_states(generators, self.device)
        if self._saved is None:  # an earlier call of `Trainer.steps` was left by a break
            groups.restore(state.optimizer, self.model, before)
        else:
            self._restore_groups(self._saved)
            self._saved = None

    def _restore_groups(self, saved: Snapshot) -> None:
        """Restore saved groups, but for what callbacks set otherwise than when the run began."""
        now, first = groups.describe(self.state.optimizer, self.model), saved.first_groups
        self.groups = groups.renewed(first, first=first, now=now)
        found = groups.renewed(saved.optimizer_groups, first=first, now=now)
        groups.restore(self.state.optimizer, self.model, found)
