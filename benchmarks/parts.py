"""Parts of a benchmark that stand alone: one that fails is reported, and the next one goes on."""

import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import perf_counter
from typing import Any

import torch

from gptkit.onnx.runtime.providers import first_line

Row = list[str]
"""What was measured, the figure, and its limit."""
Parts = Mapping[str, Callable[[], Iterable[Row]]]
"""By name; a part that measures only one thing leaves it empty in its row."""


def take_parts(parts: Parts, *, until: float = math.inf) -> Iterator[Row]:
    """The rows of every part.

    Args:
        parts: by name. One that fails has a row that says so; what it already gave stays.
        until: no part begins after that moment of `perf_counter`.
    """
    for name, part in parts.items():
        if perf_counter() > until:
            yield [name, "not begun: the time is over", "-"]
            continue
        try:
            for what, *figures in part():
                yield [what or name, *figures]
        except Exception as error:
            traceback.print_exc()
            yield [name, f"failed: {type(error).__name__}: {first_line(error)}", "-"]


def seconds(work: Callable[[], Any]) -> float:
    """Seconds of one call, the device's work included."""
    _wait()
    begin = perf_counter()
    work()
    _wait()
    return perf_counter() - begin


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
