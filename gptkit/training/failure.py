"""The exception that ends training, kept until the latest complete step is saved."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from gptkit.errors import DivergedError
from gptkit.training.callbacks import note_later
from gptkit.training.distributed import Ranks


class Failure:
    """The first exception after a complete step, whose weights are good and can be saved.

    Args:
        ranks: the processes that train together. They learn of it where all of them ask whether to
            stop, so the others save the same step.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.forget()

    def forget(self) -> None:
        """Begin anew: a training that ended may be continued."""
        self.error: Exception | None = None
        self._final = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep an exception of the block, unless it is of divergence or left a `final` block."""
        try:
            yield
        except Exception as error:
            if self.is_final(error):
                raise
            if self.error is None:
                self.error = error
            elif error is not self.error:
                note_later(self.error, error)

    def raise_after(
        self, save: Callable[[], None], step: int, saved_step: Callable[[], int | None]
    ) -> NoReturn:
        """Save the latest step and raise the exception; notes on it say whether it was saved.

        Args:
            save: saves it, unless it is saved.
            step: the latest step.
            saved_step: tells which step was saved last.
        """
        assert self.error
        try:
            if step:  # else nothing is lost
                save()
        except Exception as fault:
            if saved_step() != step:
                self.error.add_note(f"step {step} was not saved: {fault}")
        if saved_step() == step:
            self.error.add_note(f"step {step} is saved: gptkit resume continues after it")
        raise self.error

    def is_final(self, error: Exception) -> bool:
        """Whether an exception is to be raised at once."""
        return self._final or isinstance(error, DivergedError)

    @contextmanager
    def final(self) -> Iterator[None]:
        """A block whose exceptions are raised at once, since they leave half a step."""
        try:
            yield
        except Exception:
            self._final = True
            raise

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block in which all ranks take part: with several, its exceptions are `final`.

        One that failed no longer does what the others wait for.
        """
        try:
            yield
        except Exception:
            self._final = self._final or self.ranks.size > 1
            raise
