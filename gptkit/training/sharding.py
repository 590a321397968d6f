"""One model over many ranks: DDP or FSDP2, and its tensors put together again.

DDP (Li et al. 2020) keeps the whole model on every rank and averages gradients. FSDP2 (Zhao et al.
2023) keeps 1/N of weights, gradients and moments on each and gathers a block when it is its turn.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gptkit.model.gpt import GPT
from gptkit.training.distributed import Ranks

T = TypeVar("T")


def parallelize(
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


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor put together; any other as it is. Every rank has to take part."""
    sharded: Any = tensor
    return sharded.full_tensor() if hasattr(sharded, "full_tensor") else tensor


def full_state(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """All tensors put together, sharded ones on the CPU; none where they are not to be kept."""
    kept = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor.detach())
        if keep:
            kept[name] = full if full is tensor else full.cpu()
    return kept


def shard_state(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
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
