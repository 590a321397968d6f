"""How many threads draw tokens on a CPU. Imports no torch."""

import os

SMALL = 16 << 20
"""Bytes of weights that one core reads for a token before a second one has begun: with fewer, more
threads draw no faster (docs/experiments.md)."""
DIGITS = 3
"""Of a number of threads that is taken at its word: more threads take too much memory."""


def for_drawing(weight_bytes: int) -> int | None:
    """OMP_NUM_THREADS if it is below 1,000; 1 for a small model; None: all of the machine's."""
    number = os.environ.get("OMP_NUM_THREADS", "")
    if number.isdecimal() and len(number) <= DIGITS and int(number):
        return int(number)
    return 1 if weight_bytes < SMALL else _allowed()


def _allowed() -> int | None:
    """The cores that this process may use, if not all: onnxruntime counts the machine's."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    number = len(os.sched_getaffinity(0))
    return number if number < (os.cpu_count() or 1) else None
