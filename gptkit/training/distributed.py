"""The processes that train one model, as torchrun starts them, and what they tell one another.

Without torchrun there is one, and nothing distributed is imported.
"""

import atexit
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

from gptkit.errors import GptkitError, PeerError, RunError, UsageError
from gptkit.plugin import IGNORE

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for another before it gives up: the first one may download or save."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, as one of them sees them; by default it is alone.

    All ranks have to call the same methods in the same order. Numbers and texts go over the CPU
    (gloo), so that no device is waited for.
    """

    rank: int = 0
    """This process's number; only 0 prints and writes."""
    size: int = 1
    """How many there are."""
    local_rank: int | None = None
    """This process's number on its machine; None where it is alone."""
    job: str | None = None
    """What tells this call of torchrun from others; None without torchrun."""
    restarted: bool = False
    """Whether torchrun has started the processes again after a failure."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    def batch_slice(self, batch_size: int) -> slice:
        """This rank's part of every batch.

        Raises:
            UsageError: the batch cannot be shared out evenly.
        """
        part, rest = divmod(batch_size, self.size)
        if rest:
            raise UsageError(
                f"train.batch_size: {batch_size} sequences cannot be shared out evenly among "
                f"{self.size} processes",
                hint=f"--set train.batch_size={(part + 1) * self.size}, or another number of "
                "processes",
            )
        return slice(self.rank * part, (self.rank + 1) * part)

    def all_reduce_sum(self, value: float) -> float:
        """A number added up over the ranks."""
        return self._reduce(value, "SUM")

    def all_reduce_max(self, value: float) -> float:
        """The largest of the ranks' numbers."""
        return self._reduce(value, "MAX")

    def any(self, flag: bool) -> bool:
        """Whether a flag is up on some rank."""
        return bool(self.all_reduce_max(flag))

    def barrier(self) -> None:
        """Go on when every rank has come here."""
        self.all_reduce_max(0)

    def broadcast(self, text: str = "") -> str:
        """The first rank's text, on every rank."""
        if self.size == 1:
            return text
        from torch import distributed

        data = torch.tensor(list(text.encode() if self.first else b""), dtype=torch.uint8)
        length = int(self.all_reduce_max(len(data)))
        data = data if self.first else data.new_empty(length)
        distributed.broadcast(data, 0)
        return bytes(data.tolist()).decode()

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """A tensor's average over the ranks, in place and on its device."""
        if self.size > 1:
            from torch import distributed

            distributed.all_reduce(value)
            value /= self.size
        return value

    def rank0_first(self, action: Callable[[], T]) -> T:
        """First on rank 0, then on one rank of every other machine, then on the rest.

        What the first one downloads or encodes, the others find in the cache.
        """
        turn = 0 if self.first else 1 if self.local_rank == 0 else 2
        for _ in range(turn):
            self.barrier()
        result = action()
        for _ in range(turn, 2):
            self.barrier()
        return result

    def shard(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Every size-th of the same batches of x and y (B, T), equally many on each rank.

        Where one is lacking it is one without targets: FSDP2 computes only in company.
        """
        i, x, y = -1, torch.empty(0), torch.empty(0)
        for i, (x, y) in enumerate(batches):
            if i % self.size == self.rank:
                yield x, y
        if i % self.size < self.rank:
            yield x, torch.full_like(y, IGNORE)

    def reseed(self, seed: int, step: int) -> None:
        """Let every rank but the first draw a step's dropout from (seed, step, rank) alone.

        The first keeps to torch's own generators, whose states are in the checkpoint.
        """
        if not self.first:
            mixed = np.random.SeedSequence([seed, step, self.rank]).generate_state(1, np.uint64)
            torch.manual_seed(int(mixed[0]))

    def _reduce(self, value: float, operation: str) -> float:
        if self.size == 1:
            return value
        from torch import distributed

        number = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(number, getattr(distributed.ReduceOp, operation))
        return number.item()


ALONE = Ranks()


def from_environment() -> Ranks:
    """What torchrun has told this process; `ALONE` without torchrun."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" not in env:
        return ALONE
    size, job = int(env["WORLD_SIZE"]), env["TORCHELASTIC_RUN_ID"]
    return Ranks(
        rank=int(env["RANK"]),
        size=size,
        local_rank=int(env["LOCAL_RANK"]) if size > 1 else None,
        job=job if job != "none" else f"{platform.node()}:{os.getppid()}",
        restarted=int(env["TORCHELASTIC_RESTART_COUNT"]) > 0,
    )


@contextmanager
def join() -> Iterator[Ranks]:
    """The processes that torchrun has started, connected while the context lasts.

    Where several fail, the first one says why; the others only end, with an exit code of their own.

    Raises:
        RunError: another rank has ended, and not because of an error of its own.
        PeerError: this rank fails, too, but another one has said why.
    """
    ranks = from_environment()
    if ranks.size == 1:
        yield ranks
        return
    from torch import distributed

    store, board = _meet(ranks)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(
        backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=TIMEOUT
    )
    try:
        yield replace(ranks, restarted=ranks.any(ranks.restarted))  # machines count for themselves
    except BaseException as error:
        lost, another_said_why = _is_lost(error), _has_another_failed(board)
        if another_said_why and (lost or isinstance(error, GptkitError)):
            raise PeerError(getattr(error, "exit_code", 1)) from None
        if lost:
            raise RunError(
                "another process of this run has ended",
                hint="the newest checkpoint is good: gptkit resume goes on from it, with as many "
                "processes as you like",
            ) from error
        raise
    distributed.destroy_process_group()


def leave(exit_code: int) -> NoReturn:
    """End this process as Python would, but for taking Python itself down.

    gloo's threads outlive their group, which DDP and DTensors' caches hold on to, and one that
    lets go of a tensor while Python shuts down aborts the process: a good run would end as a failed
    one. `multiprocessing` ends its processes like this, too.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _is_lost(error: BaseException) -> bool:
    """Whether the connection to another rank broke: torch has no type of its own for gloo's."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def _meet(ranks: Ranks) -> tuple[Any, Any]:
    """A store that rank 0 holds for this start of the processes, and a board that outlives them.

    The board is torchrun's store. It cannot serve for both, since after a restart it still says
    where the dead processes were to be found; that is why an address in it is tried first.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    board, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    address = os.environ["MASTER_ADDR"]
    if ranks.first:
        store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
        board.set("gptkit/port", str(store.port))
    else:
        port = _open_port(address, lambda: int(board.get("gptkit/port")))
        store = TCPStore(address, port, is_master=False, timeout=TIMEOUT)
    return store, PrefixStore(f"gptkit/{store.port}", board)


def _open_port(address: str, read: Callable[[], int]) -> int:
    """The port that `read` gives, once somebody listens there."""
    end = time.monotonic() + TIMEOUT.total_seconds()
    while True:
        try:
            port = read()
            socket.create_connection((address, port), timeout=5).close()
            return port
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _has_another_failed(board: Any) -> bool:
    """Whether another rank was here before."""
    try:
        return bool(board.add("failed", 1) > 1)
    except RuntimeError:
        return False  # torchrun is gone as well
