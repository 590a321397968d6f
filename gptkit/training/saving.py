"""Saving: writes snapshots, large ones in a thread while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from gptkit import memory
from gptkit.training import snapshot
from gptkit.training.distributed import Ranks
from gptkit.training.snapshot import Snapshot

LARGE = 64 << 20
"""Bytes of a snapshot from which a thread writes it. Less takes a fraction of a second, and the
events of a small training keep a fixed order."""


class Saving:
    """At most one snapshot at a time that is being written.

    All ranks call the same methods in the same order.

    Args:
        write: writes a snapshot and returns its step folder.
        ranks: the processes that train together.
        together: whether all of them write, each its part, or the first one alone.
    """

    def __init__(self, write: Callable[[Snapshot], Path], ranks: Ranks, *, together: bool) -> None:
        self._write, self._ranks = write, ranks
        self._writes = together or ranks.first
        self._folder: Future[Path | None] | None = None
        self._has_room = False  # for every copy, since there is one that is used again
        self.step: int | None = None
        """The step that is being written; None if none is."""

    @property
    def done(self) -> bool:
        """Whether nothing is being written by this rank."""
        return self._folder is None or self._folder.done()

    def begin(self, taken: Snapshot, *, beside: bool) -> None:
        """Write a snapshot; nothing else may be being written.

        Args:
            taken: of the training.
            beside: write a copy of it in a thread, if it is large and memory has room for a copy.

        Raises:
            CheckpointError: it cannot be written.
        """
        if beside and self._copies(taken):
            self._folder = self._start(snapshot.copy(taken)) if self._writes else _done(None)
        else:
            self._folder = _done(self._write(taken) if self._writes else None)
        self.step = taken.step

    def finish(self) -> Path | None:
        """Wait for what is being written; returns its step folder, None on ranks that write none.

        Raises:
            CheckpointError: it cannot be written.
        """
        folder = self._folder
        if folder:
            wait([folder])  # a Ctrl-C here leaves it pending
        self._folder, self.step = None, None
        return folder.result() if folder else None

    def _copies(self, taken: Snapshot) -> bool:
        """Whether to write a copy: if, on all ranks, as much memory is free besides it."""
        size = self._ranks.all_reduce_sum(snapshot.n_bytes(taken) if self._writes else 0)
        if size < LARGE or self._has_room:
            return size >= LARGE
        free = memory.free()
        fits = not self._ranks.any(free is None or 2 * size > free)
        self._has_room = fits and snapshot.pins_copies(taken)
        return fits

    def _start(self, taken: Snapshot) -> "Future[Path | None]":
        pool = ThreadPoolExecutor(1, "saving")
        folder: Future[Path | None] = pool.submit(self._write, taken)
        pool.shutdown(wait=False)  # its thread ends when it has written; Python waits for it
        return folder


def _done(folder: Path | None) -> "Future[Path | None]":
    done: Future[Path | None] = Future()
    done.set_result(folder)
    return done
