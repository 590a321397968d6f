"""The numbers that a step is logged with, and the speed of training."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

from torch import Tensor

Values = Mapping[str, float | Tensor]


class Recorder:
    """Turns a step's values into numbers and measures the speed, once per step.

    Args:
        usage: further numbers, from the tokens per second, which are None without a step.
    """

    def __init__(self, usage: Callable[[float | None], dict[str, float]] = lambda rate: {}) -> None:
        self.earlier = 0.0
        """Seconds of training before this process. Checkpoints hold no times, so that equal runs
        have equal ones: a logger that has kept them sets it in `on_fit_start`."""
        self._usage = usage
        self._began: float | None = None
        self._clock = _Clock()
        self._complete: Values = {}
        self._numbers: dict[str, tuple[float | Tensor, float]] = {}
        self._measured: tuple[float, dict[str, float]] = (-1, {})

    @property
    def elapsed(self) -> float:
        """Seconds since the first step began, including earlier processes of a resumed run."""
        return self.earlier + (perf_counter() - self._began if self._began is not None else 0.0)

    def start(self, values: Values) -> None:
        """Begin a step: start the clock, and keep the values of the step before.

        Args:
            values: "step", "tokens" and others of the latest complete step, not read here.
        """
        if self._began is None:
            self._began = perf_counter()
            self._clock.tokens = float(values["tokens"])
        self._complete = values
        self._clock.start()

    def stop(self) -> None:
        """Stop the clock until the next step: evaluating and saving are not training."""
        self._clock.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of a block, which may be within a step."""
        running = self._clock.running
        self._clock.stop()
        try:
            yield
        finally:
            if running:
                self._clock.start()

    def record(self, values: Values) -> dict[str, float]:
        """The values as numbers, with `tokens_per_second`, `elapsed` and what `usage` measures.

        Args:
            values: as for `start`. While a step is under way, those that `start` kept are taken,
                since they are of a complete step. Reading them waits for the device.
        """
        if values["step"] == self._complete.get("step"):
            values = self._complete
        if new := self._measured[0] != values["step"]:
            self._numbers = {}  # a callback may have updated a tensor in place
        record = {name: self._number(name, value) for name, value in values.items()}
        if new:
            self._measured = (record["step"], self._measure(record["tokens"]))
        return record | self._measured[1]

    def _number(self, name: str, value: float | Tensor) -> float:
        if isinstance(value, int):
            return value
        if name not in self._numbers or self._numbers[name][0] is not value:
            self._numbers[name] = (value, float(value))
        return self._numbers[name][1]

    def _measure(self, tokens: float) -> dict[str, float]:
        rate = self._clock.rate(tokens)
        speed = {} if rate is None else {"tokens_per_second": round(rate, 1)}
        speed |= {"elapsed": round(self.elapsed, 3)}
        with self.paused():
            return speed | self._usage(rate)


class _Clock:
    """Seconds of training since the latest measurement."""

    def __init__(self) -> None:
        self.tokens = 0.0
        """Seen until the latest measurement."""
        self._seconds = 0.0
        self._since: float | None = None

    @property
    def running(self) -> bool:
        return self._since is not None

    def start(self) -> None:
        self._since = perf_counter() if self._since is None else self._since

    def stop(self) -> None:
        if self._since is not None:
            self._seconds += perf_counter() - self._since
            self._since = None

    def rate(self, tokens: float) -> float | None:
        """Tokens per second since the latest measurement; None if there was no step."""
        running = self.running
        self.stop()
        seconds, new = self._seconds, tokens - self.tokens
        self._seconds, self.tokens = 0.0, tokens
        if running:
            self.start()
        return new / seconds if new and seconds else None
