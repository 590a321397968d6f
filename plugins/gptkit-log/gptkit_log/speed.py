"""The speed of training, without the time that evaluating and saving take."""

from time import perf_counter


class Speed:
    """Measures tokens per second between log lines.

    Args:
        elapsed: seconds of training before this process.
    """

    def __init__(self, *, elapsed: float = 0.0) -> None:
        self._begin = perf_counter() - elapsed
        self._mark: tuple[float, float] | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since training began, including earlier processes of a resumed run."""
        return perf_counter() - self._begin

    def start(self, tokens: float) -> None:
        """Start the clock, if it is stopped, at the beginning of a step."""
        if self._mark is None:
            self._mark = perf_counter(), tokens

    def stop(self) -> None:
        """Stop the clock and drop the time since the last measurement."""
        self._mark = None

    def measure(self, tokens: float) -> float | None:
        """Tokens per second since the last measurement; None if the clock is stopped."""
        if self._mark is None:
            return None
        (then, before), now = self._mark, perf_counter()
        self._mark = now, tokens
        return (tokens - before) / (now - then)
