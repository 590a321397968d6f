"""Memory that a training step frees is kept for the next one.

glibc gives freed memory back to the system, which clears it page by page when the next step asks
for it again: thousands of page faults a step.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gptkit.memory import give_back, glibc

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
TUNABLES = ("glibc.malloc.mmap_threshold", "glibc.malloc.trim_threshold")
"""Environment variables, and parts of GLIBC_TUNABLES, with which a user says the same to glibc;
then they decide."""
LARGEST = 32 << 20
"""Bytes; larger tensors still go back to the system at once."""
SMALL = 256 << 10
"""Bytes; smaller tensors share pages, also where memory is short."""
KEPT = 1 << 30
"""Bytes that may lie unused at the end of the heap."""


@contextmanager
def for_training(device: torch.device, *, sharded: bool) -> Iterator[None]:
    """Set glibc for a training on a CPU, for the whole process; elsewhere nothing happens.

    At the end, memory that is free goes back to the system.

    Args:
        device: that trains.
        sharded: whether the model is divided among processes.
    """
    libc = glibc()
    if libc is None or device.type != "cpu":
        yield
        return
    if not _is_chosen():
        (_return_freed_memory if sharded else _keep_freed_memory)(libc)
    try:
        yield
    finally:
        give_back()


def _keep_freed_memory(libc: ctypes.CDLL) -> None:
    """Let glibc keep what is freed."""
    libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
    libc.mallopt(M_TRIM_THRESHOLD, KEPT)


def _return_freed_memory(libc: ctypes.CDLL) -> None:
    """Let glibc return large tensors to the system as soon as they are freed.

    For sharded models: between gathered blocks that go and gradients that stay, the memory that it
    keeps otherwise comes to several times what is in use.
    """
    libc.mallopt(M_MMAP_THRESHOLD, SMALL)


def _is_chosen() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(name in os.environ for name in CHOSEN) or any(n in tunables for n in TUNABLES)
