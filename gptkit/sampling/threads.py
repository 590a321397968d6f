"""How many threads draw tokens on a CPU. Imports no torch."""

import os

SMALL = 16 << 20
"""Bytes of weights that one core reads for a token before a second one has begun: with fewer, more
threads draw no faster (docs/experiments.md)."""


def for_drawing(weight_bytes: int) -> int | None:
    """OMP_NUM_THREADS if it is set, 1 for a small model; None leaves it to the library."""
    number = os.environ.get("OMP_NUM_THREADS", "")
    if number.isdecimal() and int(number):
        return int(number)
    return 1 if weight_bytes < SMALL else None
