"""How fast training goes, without the time between steps that evaluating and saving take."""

from time import perf_counter


class Speed:
    """Measures tokens per second between lines of the log.

    Args:
        elapsed: seconds of training before this process.
    """

    def __init__(self, *, elapsed: float = 0.0) -> None:
        self._begin = perf_counter() - elapsed
        self._mark: tuple[float, float] | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since training began, those of interrupted sessions included."""
        return perf_counter() - self._begin

    def start(self, tokens: float) -> None:
        """Let the clock run, if it stands still: a step begins."""
        if self._mark is None:
            self._mark = perf_counter(), tokens

    def stop(self) -> None:
        """Forget what has passed since the last measurement."""
        self._mark = None

    def measure(self, tokens: float) -> float | None:
        """Tokens per second since the last measurement; None where the clock stood still."""
        if self._mark is None:
            return None
        (then, before), now = self._mark, perf_counter()
        self._mark = now, tokens
        return (tokens - before) / (now - then)
