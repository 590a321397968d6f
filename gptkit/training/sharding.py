"""One model on many ranks: DDP or FSDP2, and its full tensors for checkpoints.

DDP (Li et al. 2020) keeps the whole model on every rank and averages the gradients. FSDP2 (Zhao et
al. 2023) keeps 1/N of weights, gradients and moments on each rank and gathers a block when it runs.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gptkit.model import initial
from gptkit.model.gpt import GPT, is_sharded
from gptkit.training.distributed import Ranks

T = TypeVar("T")


def parallelize(
    model: GPT, ranks: Ranks, *, device: torch.device, shard: bool, compiled: bool, seed: int
) -> nn.Module:
    """Move a model, or this rank's part of it, to the device; returns the module to train with.

    That is the model itself on a single rank and with FSDP2, which turns its parameters into
    DTensors; otherwise it is DDP around the model.

    With FSDP2 a model on the meta device gets its initial weights here: each rank draws only its
    part, those of the seed.
    """
    if ranks.size > 1 and device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.size > 1 and shard:
        _fully_shard(model, device, compiled=compiled)
        if model.wte.weight.is_meta:
            _materialise(model, device, seed=seed)
        return model.to(device)
    model.to(device)
    if compiled:
        model.compile()  # only model(x, y); its other methods stay eager
    if ranks.size == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    devices = [device] if device.type == "cuda" else None
    ddp = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    ddp.broadcast_buffers = False  # constant tables
    return ddp


def accumulating(module: Any, parts: Iterable[T]) -> Iterator[T]:
    """Yield the parts of a batch; DDP averages the gradients over the ranks only at the last one.

    FSDP2 does it at every part; otherwise it would have to keep full gradients.
    """
    if not hasattr(module, "no_sync"):
        yield from parts
        return
    *others, last = parts
    with module.no_sync():
        yield from others
    yield last


def n_ranks(tensor: Tensor) -> int:
    """The number of ranks that have parts of a sharded tensor."""
    sharded: Any = tensor
    size: int = sharded.device_mesh.size()
    return size


def full_tensor(tensor: Tensor) -> Tensor:
    """All parts of a sharded tensor together; any other tensor as it is. All ranks must call it."""
    sharded: Any = tensor
    return sharded.full_tensor() if is_sharded(tensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, which may be empty; any other tensor as it is."""
    sharded: Any = tensor
    return sharded.to_local() if is_sharded(tensor) else tensor


def local_part(tensor: Tensor) -> tuple[int, Tensor]:
    """The index of this rank's first row of a tensor that is sharded by rows, and its rows.

    They may be none, and share memory with the tensor. Any other tensor is one part from row 0.
    """
    rows = local_tensor(tensor.detach())
    if not is_sharded(tensor):
        return 0, rows
    sharded: Any = tensor
    mesh = sharded.device_mesh
    each = -(-len(tensor) // mesh.size())  # as torch.chunk divides them
    return min(mesh.get_local_rank() * each, len(tensor)), rows


def with_rows(like: Tensor, rows: Tensor) -> Tensor:
    """A tensor that is sharded like another one, with other rows on this rank."""
    from torch.distributed.tensor import DTensor

    layout: Any = like
    return DTensor.from_local(
        rows, layout.device_mesh, layout.placements, run_check=False,
        shape=layout.shape, stride=layout.stride(),
    )  # fmt: skip


def map_whole(
    function: Callable[[Tensor], Tensor], parts: Sequence[Tensor], like: Tensor
) -> list[Tensor]:
    """Apply a function to whole matrices of which every rank has its rows.

    Rank i computes the i-th one, and each rank gets its rows of all. All ranks must call it.

    Args:
        function: from a matrix to another of its shape.
        parts: this rank's rows of at most as many matrices as there are ranks.
        like: a sharded matrix of their shape.
    """
    from torch.distributed import all_to_all_single

    layout: Any = like
    mesh, (n_rows, width) = layout.device_mesh, like.shape
    each, rank = -(-n_rows // mesh.size()), mesh.get_local_rank()
    bounds = [min(i * each, n_rows) for i in range(mesh.size() + 1)]
    sent = [part.numel() for part in parts] + [0] * (mesh.size() - len(parts))
    held = [(b - a) * width * (rank < len(parts)) for a, b in itertools.pairwise(bounds)]
    whole = parts[0].new_empty(sum(held))
    all_to_all_single(
        whole, torch.cat([part.flatten() for part in parts]), held, sent, group=mesh.get_group()
    )
    if len(whole):
        whole = function(whole.view(n_rows, width)).flatten()
    own = parts[0].new_empty(sum(sent))
    all_to_all_single(own, whole, sent, held, group=mesh.get_group())
    return [rows.view(-1, width) for rows in torch.split(own, sent[: len(parts)])]


def rows_alone(tensor: Tensor) -> Tensor:
    """A tensor that is sharded by rows, if at all; one that is sharded otherwise is gathered.

    All ranks must call it.
    """
    layout: Any = tensor
    if is_sharded(tensor) and any(not p.is_shard(0) for p in layout.placements):
        return full_tensor(tensor.detach())
    return tensor


def host_copy(tensor: Tensor) -> Tensor:
    """A copy in the host's memory, of this rank's rows if it is sharded.

    From a GPU it is complete after the next synchronisation. All ranks must call it.
    """
    rows = local_tensor(tensor.detach())
    own = _memory_for(rows)
    own.copy_(rows, non_blocking=rows.is_cuda)
    if not is_sharded(tensor):
        return own
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    whole: Any = tensor
    return DTensor.from_local(
        own, init_device_mesh("cpu", (get_world_size(),)), whole.placements, run_check=False,
        shape=whole.shape, stride=whole.stride(),
    )  # fmt: skip


def _memory_for(tensor: Tensor) -> Tensor:
    """Memory of the host for a copy: for one on a GPU pinned, if the system has so much of that."""
    if tensor.is_cuda:
        with suppress(RuntimeError):  # pinned memory may be limited; a copy then takes longer
            return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return torch.empty(tensor.shape, dtype=tensor.dtype)


class Sharded(Mapping[str, Tensor]):
    """Full tensors, each sharded like the parameter that it belongs to when it is looked up.

    Args:
        tensors: equal on every rank, named `<parameter>` or `<parameter>:<kind>`; perhaps a file's.
        model: its parameters determine how the tensors are sharded.
    """

    def __init__(self, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
        self._tensors, self._parameters = tensors, dict(model.named_parameters())

    def __getitem__(self, key: str) -> Tensor:
        return shard_like(self._tensors[key], self._parameters.get(key.partition(":")[0]))

    def __contains__(self, key: object) -> bool:
        return key in self._tensors  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def shard_like(tensor: Tensor, parameter: Any) -> Tensor:
    """A tensor sharded like a parameter; as it is if their shapes differ or there is nothing to do.

    Args:
        tensor: equal on every rank, or sharded already.
        parameter: one of the model's, or None.
    """
    if parameter is None or not is_sharded(parameter) or parameter.shape != tensor.shape:
        return tensor
    if is_sharded(tensor):
        return tensor
    first, own = local_part(parameter)
    rows = tensor[first : first + len(own)].to(own.device, copy=True)  # the rest may be freed
    return with_rows(parameter, rows)


def _fully_shard(model: GPT, device: torch.device, *, compiled: bool) -> None:
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (get_world_size(),))
    for block in model.h:
        if compiled:
            block.compile()
        fully_shard(block, mesh=mesh)
    # Reshard after forward, too: an evaluation has no backward pass.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for method in (GPT.next_logits, GPT.logits):  # for previews, and to compare with a source
        register_fsdp_forward_method(model, method.__name__)


@torch.no_grad()
def _materialise(model: GPT, device: torch.device, *, seed: int) -> None:
    """Move a sharded model from the meta device to this one, with its initial weights."""
    tables = dict(model.named_buffers())  # they are not on meta
    model.to_empty(device=device)
    model.tie()
    for name, buffer in model.named_buffers():
        buffer.copy_(tables[name])
    depth = model.config.n_layer
    for name, weight in model.named_parameters():
        first, rows = local_part(weight)
        last = first + len(rows)
        drawn = initial.rows(name, weight.shape, n_layer=depth, seed=seed, first=first, last=last)
        rows.copy_(drawn)
