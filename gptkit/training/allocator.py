"""Memory that a training step frees is kept for the next one.

glibc gives freed memory back to the system, which clears it page by page when the next step asks
for it again: thousands of page faults a step.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 32 << 20
"""Bytes; larger tensors still go back to the system at once."""
SMALL = 256 << 10
"""Bytes; smaller tensors share pages, also where memory is short."""
KEPT = 1 << 30
"""Bytes that may lie unused at the end of the heap."""


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, for the whole process; elsewhere nothing happens."""
    if libc := _glibc():
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)


def return_freed_memory() -> None:
    """Let glibc return large tensors to the system as soon as they are freed.

    For sharded models: between gathered blocks that go and gradients that stay, the memory that it
    keeps otherwise comes to several times what is in use.
    """
    if libc := _glibc():
        libc.mallopt(M_MMAP_THRESHOLD, SMALL)


def give_back_memory() -> None:
    """Return the memory that is free now to the system."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
