"""The batches of the training split, read one step ahead in a thread."""

import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from threading import Thread

from torch import Tensor

from gptkit.plugin import Data
from gptkit.training.checked_split import CheckedSplit
from gptkit.training.distributed import ALONE, Ranks

Batch = tuple[Tensor, Tensor]
Job = tuple[Callable[[], Batch], "Future[Batch]"]

PATIENCE = 5.0
"""Seconds that `close` waits for a batch that is being read; a disk may hang for ever."""
POLL = 0.2
"""Seconds between two looks whether training is to end while a batch is awaited."""


class Interrupted(Exception):  # noqa: N818 - a wish of the user, not an error
    """Training is to end, and the batch that it waits for is not there yet."""


class Reader:
    """Reads batches of the training split while the step before them is computed.

    The split is called in one thread, one call at a time.

    Args:
        data: whose training split to read.
        seed: determines the order of the data.
        ranks: the processes that share a batch.
        name: of the data set, for errors.
        interrupted: whether to wait no longer. Only asked where one process trains alone: of
            several, all must do the same steps.
    """

    def __init__(
        self,
        data: Data,
        *,
        seed: int,
        ranks: Ranks = ALONE,
        name: str,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.data, self.seed, self.ranks, self.name = data, seed, ranks, name
        self._interrupted = interrupted
        self._thread: _Thread | None = None
        self._ahead: Future[Batch] | None = None
        self._ahead_of = (-1, 0)

    def read(self, step: int, batch_size: int) -> Batch:
        """This rank's part of a step's batch; waits for it.

        A batch that was read ahead for another step or batch size is dropped.

        Args:
            step: updates done, from 0.
            batch_size: sequences of this step, over all ranks.

        Returns:
            x and y, int64 (batch_size / ranks, block_size).

        Raises:
            Interrupted: training is to end; what is being read goes on in the background.
            PluginError: the split returned something else than a batch.
            Exception: what the split raises, with a note that names the data set and the step.
        """
        self.read_ahead(step, batch_size)
        self.wait()
        assert self._ahead
        found, self._ahead = self._ahead, None
        try:
            return found.result()
        except Exception as error:
            error.add_note(f"raised by the data set {self.name} at step {step}")
            raise

    def read_ahead(self, step: int, batch_size: int) -> None:
        """Begin to read a step's batch in the background, unless that has begun already."""
        if self._ahead is None or self._ahead_of != (step, batch_size):
            self._ahead, self._ahead_of = self._begin(step, batch_size), (step, batch_size)

    def wait(self) -> None:
        """Wait for the batch that is being read, so that this thread may use the data set.

        Raises:
            Interrupted: training is to end; the batch is not there yet.
        """
        alone = self.ranks.size == 1
        while self._ahead and not wait([self._ahead], POLL if alone else None).done:
            if self._interrupted():
                raise Interrupted("training ends: the data set did not give its next batch")

    def close(self) -> None:
        """End the thread; a read that does not end within `PATIENCE` is left to itself."""
        self._ahead = None
        if self._thread:
            self._thread.end()
            self._thread.join(PATIENCE)
        self._thread = None

    def _begin(self, step: int, batch_size: int) -> "Future[Batch]":
        if self._thread is None:
            self._thread = _Thread()
            weakref.finalize(self, self._thread.end)
        data, seed, part = self.data, self.seed, self.ranks.batch_slice(batch_size)
        return self._thread.call(lambda: _read(data, seed, step, batch_size, part))


def _read(data: Data, seed: int, step: int, batch_size: int, part: slice) -> Batch:
    """A part of a step's batch."""
    split = CheckedSplit(data.train, "training", data)
    return split[split.indices(seed, step, batch_size)[part]]


class _Thread(Thread):
    """Makes calls in the background, in order. The process may end while it works."""

    def __init__(self) -> None:
        super().__init__(name="gptkit-reader", daemon=True)
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.start()

    def call(self, job: Callable[[], Batch]) -> "Future[Batch]":
        result: Future[Batch] = Future()
        self._jobs.put((job, result))
        return result

    def end(self) -> None:
        self._jobs.put(None)

    def run(self) -> None:
        while (job := self._jobs.get()) is not None:
            _do(*job)
            del job  # the batch is gone as soon as the trainer has used it


def _do(job: Callable[[], Batch], result: "Future[Batch]") -> None:
    try:
        result.set_result(job())
    except BaseException as error:  # the trainer raises it at the batch's step
        result.set_exception(error)
