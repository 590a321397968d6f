"""Repeats in turns, their median, and the CPU time of other processes meanwhile."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Self, TypeVar

import psutil

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Repeats of one figure."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        """The middle one."""
        return median(self.values)

    def show(self, digits: int = 0, *, unit: float = 1.0) -> str:
        """Median (lowest to highest), each divided by `unit`."""
        middle, low, high = (
            f"{value / unit:,.{digits}f}"
            for value in (self.median, min(self.values), max(self.values))
        )
        return f"{middle} ({low} to {high})"

    def per(self, amount: float) -> "Spread":
        """Seconds become a rate: `amount` per second."""
        return Spread([amount / value for value in self.values])

    def over(self, other: "Spread") -> "Spread":
        """Ratios, each of two repeats of the same round."""
        return Spread([a / b for a, b in zip(self.values, other.values, strict=True)])


def take_turns(
    contestants: Mapping[K, Callable[[], T]], *, rounds: int, warmup: int = 1
) -> dict[K, list[T]]:
    """Call every contestant once a round, so that a slow phase of the machine affects them all.

    Each round has the reverse order of the one before.

    Returns:
        What the calls returned, by contestant; the warm-up's are dropped.
    """
    results: dict[K, list[T]] = {name: [] for name in contestants}
    order = list(contestants)
    for i in range(-warmup, rounds):
        for name in order:
            value = contestants[name]()
            if i >= 0:
                results[name].append(value)
        order.reverse()
    return results


def timed(work: Callable[[], object], calls: int = 1) -> Callable[[], float]:
    """A function that calls `work` that often and returns the seconds that one call took."""

    def seconds() -> float:
        begin = perf_counter()
        for _ in range(calls):
            work()
        return (perf_counter() - begin) / calls

    return seconds


class Bystanders:
    """Measures, as a context, the share of the CPU that other processes used."""

    share = 0.0

    def __enter__(self) -> Self:
        self._begin = perf_counter(), _busy(), _own()
        return self

    def __exit__(self, *error: object) -> None:
        begin, busy, own = self._begin
        available = (perf_counter() - begin) * (os.cpu_count() or 1)
        self.share = max(0.0, (_busy() - busy) - (_own() - own)) / available


def _busy() -> float:
    """Seconds of CPU that the machine was busy, steal time of a hypervisor included."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - sum(getattr(times, n, 0) for n in ("iowait", "guest")))


def _own() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
