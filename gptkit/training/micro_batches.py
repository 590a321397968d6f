"""Micro-batches: a rank's part of a batch, divided into what one forward pass takes."""

import math
from collections.abc import Callable, Iterator

from torch import Tensor

from gptkit.contract.train_state import check_batch_size
from gptkit.data.split import IGNORE
from gptkit.errors import DataError, PluginError
from gptkit.training.distributed import Ranks
from gptkit.training.evaluate import MASKED


def part_of(batch_size: int, ranks: Ranks) -> slice:
    """This rank's part of a batch whose size a callback may have set.

    Raises:
        PluginError: there is no such batch, or it cannot be divided evenly among the ranks.
    """
    check_batch_size(batch_size)
    if batch_size % ranks.size:
        raise PluginError(
            f"state.batch_size: a callback set it to {batch_size!r}",
            hint=f"set a multiple of {ranks.size}, the number of processes",
        )
    return ranks.batch_slice(batch_size)


def size_in(part: slice, wanted: int | None) -> int:
    """Sequences per forward pass: the wanted number, or its gcd with a rank's part of the batch."""
    total = part.stop - part.start
    return math.gcd(total, wanted or total)


def divide(
    batch: tuple[Tensor, Tensor],
    size: int,
    *,
    ranks: Ranks,
    put: Callable[[Tensor], Tensor],
    name: str,
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Micro-batches on the device, x and y (size, T), with what their mean loss counts.

    Args:
        batch: this rank's part, x and y (B, T).
        size: sequences of a micro-batch.
        ranks: all of them call this.
        put: copies to the device.
        name: of the batch and its data set, for errors.

    Raises:
        DataError: every target is masked, on all ranks.
    """
    x, y = batch
    total = int(ranks.all_reduce_sum(_n_targets(y)))
    if not total:
        raise DataError(f"{name}: every target is masked", hint=MASKED)
    return _parts(x, y, size, total, ranks=ranks, put=put)


def _parts(
    x: Tensor,
    y: Tensor,
    size: int,
    total: int,
    *,
    ranks: Ranks,
    put: Callable[[Tensor], Tensor],
) -> Iterator[tuple[Tensor, Tensor, float]]:
    for i in range(0, len(x), size):
        x_part, y_part = x[i : i + size], y[i : i + size]
        if targets := _n_targets(y_part):
            yield put(x_part), put(y_part), loss_weight(targets, total, ranks.size)
        elif ranks.size > 1:  # DDP and FSDP2 need gradients from every rank: zeros
            yield put(x_part), put(x_part), 0.0


def loss_weight(targets: int, total: int, world_size: int) -> float:
    """What to multiply a micro-batch's mean loss by, so that every target counts the same.

    Args:
        targets: of the micro-batch, without masked ones.
        total: of the whole batch on all ranks.
        world_size: number of ranks; gradients are averaged over them, so the factor undoes that.
    """
    return targets / total * world_size


def _n_targets(y: Tensor) -> int:
    """Targets that are not masked."""
    return int((y != IGNORE).sum())
