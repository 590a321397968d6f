"""Callbacks: runs the events of a training's callbacks, in order, and tells which one failed."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from gptkit.contract.train_state import check_batch_size
from gptkit.plugin import Callback, TrainState
from gptkit.recipe.recipe import OnError
from gptkit.terminal import say


class Callbacks(Mapping[str, Callback]):
    """The callbacks of a training by name, in the order in which they run.

    Args:
        callbacks: by the name under which a checkpoint keeps their states.
        labels: what errors call them; by default their names.
        on_error: "warn" for those whose exceptions are told and do not end training.
    """

    def __init__(
        self,
        callbacks: Mapping[str, Callback] | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        on_error: Mapping[str, OnError] | None = None,
    ) -> None:
        self._callbacks, self._on_error = dict(callbacks or {}), dict(on_error or {})
        self._labels = {name: (labels or {}).get(name, name) for name in self._callbacks}
        self._failures: Counter[tuple[str, str]] = Counter()

    def __getitem__(self, name: str) -> Callback:
        return self._callbacks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._callbacks)

    def __len__(self) -> int:
        return len(self._callbacks)

    def label(self, name: str) -> str:
        """What errors call a callback."""
        return self._labels[name]

    def emit(self, event: str, state: TrainState) -> None:
        """Call an event's method on every callback, in order."""
        for name in self._callbacks:
            self.call(name, event, state)

    def emit_to_all(
        self, event: str, state: TrainState, *, final: Callable[[Exception], bool]
    ) -> None:
        """Call an event's method on every callback, in order; then raise what the first one raised.

        Notes on it tell of the others. So the states of all callbacks belong to the same step when
        it is saved.

        Args:
            event: its name.
            state: of the training.
            final: whether an exception is to be raised at once.
        """
        first: Exception | None = None
        for name in self._callbacks:
            try:
                self.call(name, event, state)
            except Exception as error:
                if final(error):
                    raise
                if first:
                    note_later(first, error)
                first = first or error
        if first:
            raise first

    def call(self, name: str, event: str, state: TrainState) -> None:
        """Call one callback's method for an event; refuse a batch size that it set wrongly."""
        with self.blaming(name, event, state):
            before = state.batch_size
            getattr(self._callbacks[name], event)(state)
            if state.batch_size is not before:
                check_batch_size(state.batch_size)

    @contextmanager
    def blaming(self, name: str, method: str, state: TrainState) -> Iterator[None]:
        """Note on an exception which callback raised it, in which method and at which step.

        If that callback may fail, the exception ends here: one line on stderr tells the first one
        of each method, `tell_failures` how many there were.
        """
        try:
            yield
        except Exception as error:
            if self._on_error.get(name) != "warn":
                error.add_note(f"raised by {self._labels[name]} in {method} at step {state.step}")
                raise
            self._failures[name, method] += 1
            if self._failures[name, method] == 1:
                fault = " ".join(f"{type(error).__name__}: {error}".split())
                told = f"{self._labels[name]} failed in {method} at step {state.step}: {fault}"
                _tell(f"{told}; training goes on", state)

    def tell_failures(self, state: TrainState) -> None:
        """One line on stderr for each callback that failed: how often, in which methods."""
        for name in self._callbacks:
            counts = {m: n for (failed, m), n in self._failures.items() if failed == name}
            if counts:
                parts = ", ".join(f"{method} {n}" for method, n in counts.items())
                times = "once" if sum(counts.values()) == 1 else f"{sum(counts.values())} times"
                _tell(f"{self._labels[name]} failed {times} ({parts})", state)


def note_later(first: BaseException, later: Exception) -> None:
    """Note an exception on the one before it, which ends training."""
    who = "".join(f" ({note})" for note in getattr(later, "__notes__", ()))
    first.add_note(f"afterwards {type(later).__name__}: {later}{who}")


def _tell(line: str, state: TrainState) -> None:
    process = f"process {state.rank}: " if state.rank else ""
    say(f"warning: {process}{line}")
