"""Many processes that train one model, as torchrun starts them: ranks, DDP and FSDP2.

DDP (Li et al. 2020) keeps the whole model on every rank and averages gradients. FSDP2 (Zhao et al.
2023) keeps 1/N of weights, gradients and moments on each and gathers a block when it is its turn.
Without torchrun nothing distributed is imported.
"""

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from gptkit.errors import GptkitError, PeerError, RunError, UsageError
from gptkit.model import GPT
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

    def rows(self, batch_size: int) -> slice:
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

    def sum(self, value: float) -> float:
        """A number added up over the ranks."""
        return self._reduce(value, "SUM")

    def most(self, value: float) -> float:
        """The largest of the ranks' numbers."""
        return self._reduce(value, "MAX")

    def any(self, flag: bool) -> bool:
        """Whether a flag is up on some rank."""
        return bool(self.most(flag))

    def wait(self) -> None:
        """Go on when every rank has come here."""
        self.most(0)

    def tell(self, text: str = "") -> str:
        """The first rank's text, on every rank."""
        if self.size == 1:
            return text
        from torch import distributed

        data = torch.tensor(list(text.encode() if self.first else b""), dtype=torch.uint8)
        length = int(self.most(len(data)))
        data = data if self.first else data.new_empty(length)
        distributed.broadcast(data, 0)
        return bytes(data.tolist()).decode()

    def mean(self, value: Tensor) -> Tensor:
        """A tensor's average over the ranks, in place and on its device."""
        if self.size > 1:
            from torch import distributed

            distributed.all_reduce(value)
            value /= self.size
        return value

    def in_turn(self, action: Callable[[], T]) -> T:
        """First on rank 0, then on one rank of every other machine, then on the rest.

        What the first one downloads or encodes, the others find in the cache.
        """
        turn = 0 if self.first else 1 if self.local_rank == 0 else 2
        for _ in range(turn):
            self.wait()
        result = action()
        for _ in range(turn, 2):
            self.wait()
        return result

    def deal(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
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
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    server, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    store = PrefixStore(f"gptkit/{attempt}", server)  # the server outlives the ranks
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(
        backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=TIMEOUT
    )
    try:
        yield ranks
    except BaseException as error:
        lost, another_said_why = _is_lost(error), _has_another_failed(store)
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


def spread(
    model: GPT, ranks: Ranks, *, device: torch.device, shard: bool, compiled: bool
) -> nn.Module:
    """Put a model on this rank's device, or a part of it; what is called to train it.

    That is the model itself on a single rank and with FSDP2, which changes its parameters into
    DTensors, and otherwise DDP around it.
    """
    if ranks.size > 1 and device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.size > 1 and shard:
        return _shard(model, device, compiled=compiled)
    model.to(device)
    if compiled:
        model.compile()  # the call model(x, y) alone; everything else stays as it is
    if ranks.size == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    devices = [device] if device.type == "cuda" else None
    ddp = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    ddp.broadcast_buffers = False  # they are tables that never change
    return ddp


def accumulating(module: Any, parts: Iterable[T]) -> Iterator[T]:
    """Pass on the parts of a batch; DDP averages the gradients over the ranks at the last alone.

    FSDP2 does so at every part, since it would have to keep whole gradients otherwise.
    """
    if not hasattr(module, "no_sync"):
        yield from parts
        return
    *others, last = parts
    with module.no_sync():
        yield from others
    yield last


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together; any other as it is. Every rank has to take part."""
    sharded: Any = tensor
    return sharded.full_tensor() if hasattr(sharded, "full_tensor") else tensor


def gather(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """All tensors put together, sharded ones on the CPU; none where they are not to be kept."""
    kept = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            kept[name] = full if full is tensor else full.cpu()
    return kept


def scatter(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """What `gather` gave, each tensor cut as the parameter that it belongs to.

    Args:
        tensors: whole ones, the same on every rank, as `<parameter>` or `<parameter>:<kind>`.
        model: tells how the parameters are sharded, if they are.
    """
    parameters = dict(model.named_parameters())
    return {key: _cut(t, parameters.get(key.partition(":")[0])) for key, t in tensors.items()}


def _cut(tensor: Tensor, parameter: Any) -> Tensor:
    if not hasattr(parameter, "full_tensor") or parameter.shape != tensor.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    where = parameter.device_mesh, parameter.placements
    return distribute_tensor(tensor.to(parameter.device), *where, src_data_rank=None)


def _shard(model: GPT, device: torch.device, *, compiled: bool) -> GPT:
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (get_world_size(),))
    for block in model.h:
        if compiled:
            block.compile()
        fully_shard(block, mesh=mesh)
    # Cut again after every call, not only after a backward: an evaluation has none.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "next_logits")  # for samples
    return model.to(device)  # the buffers


def _is_lost(error: BaseException) -> bool:
    """Whether the connection to another rank broke: torch has no type of its own for gloo's."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def _has_another_failed(store: Any) -> bool:
    """Whether another rank was here before."""
    try:
        return bool(store.add("failed", 1) > 1)
    except RuntimeError:
        return False  # torchrun is gone as well
