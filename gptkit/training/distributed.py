"""The processes that train one model, as torchrun starts them, and how they communicate.

Without torchrun there is one process, and torch.distributed is not imported.
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
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import islice
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

from gptkit.data.progress import silent
from gptkit.data.split import IGNORE
from gptkit.errors import GptkitError, PeerError, RunError, UsageError
from gptkit.training import torchrun

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for another one, which may be downloading or saving."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, and which of them this one is; by default only one.

    All ranks must call the same methods in the same order. Numbers and texts are exchanged on the
    CPU (gloo), so no call waits for a GPU.
    """

    rank: int = 0
    """This process's number; only rank 0 prints and writes."""
    size: int = 1
    """Number of processes."""
    local_rank: int | None = None
    """This process's number on its machine; None if it is the only process."""
    job: str | None = None
    """Identifies this call of torchrun; None without torchrun."""
    restarted: bool = False
    """Whether torchrun restarted the processes after a failure."""
    group: Any = field(default=None, repr=False, compare=False)
    """The process group that connects them; None for torch's default one."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0

    def batch_slice(self, batch_size: int) -> slice:
        """This rank's part of every batch.

        Raises:
            UsageError: the batch cannot be divided evenly.
        """
        part, rest = divmod(batch_size, self.size)
        if rest:
            raise UsageError(
                f"train.batch_size: {batch_size} sequences cannot be divided evenly among "
                f"{self.size} processes",
                hint=f"--set train.batch_size={(part + 1) * self.size}, or another number of "
                "processes",
            )
        return slice(self.rank * part, (self.rank + 1) * part)

    def all_reduce_sum(self, value: float) -> float:
        """The sum of the ranks' numbers, on every rank."""
        return self._all_reduce(value, "sum")

    def all_reduce_max(self, value: float) -> float:
        """The largest of the ranks' numbers, on every rank."""
        return self._all_reduce(value, "max")

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """A tensor's mean over the ranks, in place and on its device."""
        if self.size > 1:
            from torch import distributed

            distributed.all_reduce(tensor)
            tensor /= self.size
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether a flag is set on some rank."""
        return bool(self.all_reduce_max(flag))

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        self.all_reduce_max(0)

    def broadcast(self, text: str = "", *, source: int = 0) -> str:
        """The text of one rank, by default of rank 0, on every rank."""
        if self.size == 1:
            return text
        from torch import distributed

        mine = self.rank == source
        data = torch.tensor(list(text.encode() if mine else b""), dtype=torch.uint8)
        length = int(self.all_reduce_max(len(data)))
        data = data if mine else data.new_empty(length)
        distributed.broadcast(data, source, group=self.group)
        return bytes(data.tolist()).decode()

    def rank0_first(self, action: Callable[[], T]) -> T:
        """Call `action` on rank 0, then on one rank of every other machine, then on the rest.

        The others find in the cache what the first call downloads or encodes.
        """
        turn = 0 if self.first else 1 if self.local_rank == 0 else 2
        for _ in range(turn):
            self.barrier()
        with silent(turn == 2):  # another rank of this machine shows what it does
            result = action()
        for _ in range(turn, 2):
            self.barrier()
        return result

    def shard(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of the batches of x and y (B, T): every size-th, as many on each rank.

        If the last one is missing, the rank gets a batch without targets: with FSDP2 all ranks
        must take part in every forward pass.
        """
        batches = iter(batches)
        while group := list(islice(batches, self.size)):
            if self.rank < len(group):
                yield group[self.rank]
            else:
                x, y = group[-1]
                yield x, torch.full_like(y, IGNORE)

    def apart(self) -> "Ranks":
        """The same ranks over connections of their own, for calls from another thread."""
        if self.size == 1:
            return self
        from torch import distributed

        return replace(self, group=distributed.new_group(backend="gloo", timeout=TIMEOUT))

    def reseed(self, seed: int, step: int) -> None:
        """Make dropout on every rank but the first a function of (seed, step, rank).

        The first rank keeps torch's own generators, whose states are in the checkpoint.
        """
        if not self.first:
            mixed = np.random.SeedSequence([seed, step, self.rank]).generate_state(1, np.uint64)
            torch.manual_seed(int(mixed[0]))

    def _all_reduce(self, value: float, operation: Literal["sum", "max"]) -> float:
        if self.size == 1:
            return value
        from torch import distributed

        operations = {"sum": distributed.ReduceOp.SUM, "max": distributed.ReduceOp.MAX}
        number = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(number, operations[operation], group=self.group)
        return number.item()


ALONE = Ranks()


def from_environment() -> Ranks:
    """The ranks as torchrun describes them in the environment; `ALONE` without torchrun."""
    env, job = os.environ, torchrun.job()
    if job is None:
        return ALONE
    size = int(env["WORLD_SIZE"])
    return Ranks(
        rank=torchrun.rank(),
        size=size,
        local_rank=int(env["LOCAL_RANK"]) if size > 1 else None,
        job=job if job != "none" else f"{platform.node()}:{os.getppid()}",
        restarted=int(env["TORCHELASTIC_RESTART_COUNT"]) > 0,
    )


@contextmanager
def join() -> Iterator[Ranks]:
    """Connect the processes that torchrun started, while the context lasts.

    If several fail, the first one reports why; the others end silently with their exit code.

    Raises:
        RunError: another rank ended without reporting an error.
        PeerError: this rank failed too, but another one has reported why.
    """
    ranks = from_environment()
    if ranks.size == 1:
        yield ranks
        return
    from torch import distributed

    store, torchrun_store = _connect_stores(ranks)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(
        backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=TIMEOUT
    )
    try:
        yield replace(ranks, restarted=ranks.any(ranks.restarted))  # each machine counts its own
    except BaseException as error:
        lost, reported = _is_lost(error), _has_another_failed(torchrun_store)
        if reported and (lost or isinstance(error, GptkitError)):
            raise PeerError(getattr(error, "exit_code", 1)) from None
        if lost:
            raise RunError(
                "another process of this run has ended",
                hint="continue from the newest checkpoint, with any number of processes: "
                "gptkit resume",
            ) from error
        raise
    distributed.destroy_process_group()


def leave(exit_code: int) -> NoReturn:
    """End this process after Python's own cleanup, but without destroying the interpreter.

    gloo's threads outlive their group, since DDP and DTensor's caches hold it. A thread that frees
    a tensor while the interpreter is destroyed aborts the process, so a successful run would count
    as failed. `multiprocessing` ends its processes in the same way.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _is_lost(error: BaseException) -> bool:
    """Whether the connection to another rank broke; torch has no exception type for gloo."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def _connect_stores(ranks: Ranks) -> tuple[Any, Any]:
    """A new store on rank 0 for the process group, and torchrun's store, which outlives a restart.

    The ranks learn the new store's port from torchrun's. After a restart that may still hold the
    port of the previous rank 0, so a port is tried before it is used.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    outer, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    address = os.environ["MASTER_ADDR"]
    if ranks.first:
        store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
        outer.set("gptkit/port", str(store.port))
    else:
        port = _open_port(address, lambda: int(outer.get("gptkit/port")))
        store = TCPStore(address, port, is_master=False, timeout=TIMEOUT)
    return store, PrefixStore(f"gptkit/{store.port}", outer)


def _open_port(address: str, read: Callable[[], int]) -> int:
    """The port that `read` returns, as soon as a process listens on it."""
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


def _has_another_failed(torchrun_store: Any) -> bool:
    """Whether another rank has called this before."""
    try:
        return bool(torchrun_store.add("failed", 1) > 1)
    except RuntimeError:
        return False  # torchrun has ended, too
