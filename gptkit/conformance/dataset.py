"""The contract of data sets as assertions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gptkit.conformance.codec import check_codec
from gptkit.conformance.options import check_options
from gptkit.contract.dataset import Data, Dataset
from gptkit.data.split import IGNORE, Split, ids_fault
from gptkit.errors import PluginError

LOOKED_AT, GLANCED_AT = 256, 4
"""Windows or items of a split that are looked at, spread over it: in a test, before training."""
HINT = "`check_dataset` of gptkit.testing looks at more of it, in a test of the data set"


def check_dataset(dataset: Dataset, *, prompts: Sequence[str] = ()) -> Data:
    """Assert the contract of data sets; return the loaded data.

    Args:
        dataset: with the options to test.
        prompts: prompts that the data's codec must be able to read.
    """
    check_options(dataset)
    data, again = dataset.load(), dataset.load()
    assert (data.sha256, data.codec) == (again.sha256, again.codec), "load() must be repeatable"
    for split, other in ((data.train, again.train), (data.val, again.val)):
        check_split(split, vocab_size=data.vocab_size, block_size=data.block_size)
        last = torch.tensor([len(split) - 1])
        assert torch.equal(split[last][0], other[last][0]), "load() must be repeatable"
    check_labels(data)
    check_codec(data.codec, prompts=prompts, vocab_size=data.vocab_size)
    return data


def check_split(split: Split, *, vocab_size: int, block_size: int) -> None:
    """Assert that windows are int64 (B, block_size) with ids below vocab_size.

    Args:
        split: of a data set.
        vocab_size: how many token ids there are.
        block_size: tokens of a window or an item.
    """
    _, y = _check_windows(split, LOOKED_AT, vocab_size=vocab_size, block_size=block_size)
    kind = type(split).__name__
    assert (y != IGNORE).any(), f"{kind}: every target is masked, nothing would be learned"
    _check_indices(split, [(1, 0, 5), (1, 1, 5), (2, 1, 8), (1, 10**6, 3)])


def check_loaded(data: Data, name: str) -> None:
    """Look at a few windows of each split before training, which could not see what is wrong.

    Args:
        data: as a data set has loaded it.
        name: of the data set, for errors.

    Raises:
        PluginError: names the data set and the fault.
    """
    sizes = {"vocab_size": data.vocab_size, "block_size": data.block_size}
    try:
        for split in (data.train, data.val):
            _check_windows(split, GLANCED_AT, among=split.at_hand, **sizes)
            _check_indices(split, [(1, 0, GLANCED_AT)])
        check_labels(data)
    except AssertionError as error:
        raise PluginError(f"the data set {name}: {error}", hint=HINT) from error
    except Exception as error:
        error.add_note(f"raised by the data set {name}")
        raise


def check_labels(data: Data) -> None:
    """Assert that the splits' labels and the names of the classes belong together."""
    for name, split in (("train", data.train), ("val", data.val)):
        labels, most = split.labels, len(data.classes) - 1
        if labels is None:
            assert not data.classes, f"Data has classes, but Data.{name}.labels is None"
            continue
        assert data.classes, f"Data.{name} has labels, but Data.classes is empty"
        fault = ids_fault(labels, f"Data.{name}.labels", {"items": len(split)}, most=most)
        assert fault is None, fault


def _check_windows(
    split: Split, most: int, *, vocab_size: int, block_size: int, among: int | None = None
) -> tuple[Tensor, Tensor]:
    """Assert what holds for every window, for at most that many of the first; return them."""
    kind = type(split).__name__
    assert 1 <= split.stride <= block_size, (
        f"{kind}.stride must be 1 .. block_size ({block_size}), not {split.stride}"
    )
    size = len(split) if among is None else among
    assert 1 <= size <= len(split), f"{kind}.at_hand must be 1 .. {len(split)}, not {size}"
    count = min(most, size)
    chosen = torch.arange(count) * (size - 1) // max(count - 1, 1)
    batch = split[chosen]
    assert isinstance(batch, tuple) and len(batch) == 2, f"{kind}[indices] must give (x, y)"
    for name, part in zip(("x", "y"), batch, strict=True):
        what, axes = f"{name} of {kind}[indices]", {"B": count, "block_size": block_size}
        fault = ids_fault(part, what, axes, most=vocab_size - 1, masked=name == "y")
        assert fault is None, fault
    _check_alike(split, chosen, batch)
    return batch


def _check_alike(split: Split, chosen: Tensor, batch: tuple[Tensor, Tensor]) -> None:
    """Assert that an item is the same again, and does not depend on the others of its batch."""
    kind = type(split).__name__
    for position in {0, len(chosen) // 2, len(chosen) - 1}:
        alone = split[chosen[position : position + 1]]
        for part, whole in zip(alone, batch, strict=True):
            assert torch.equal(part[0], whole[position]), (
                f"{kind}[indices] must depend on the index alone: item {int(chosen[position])} "
                "differs when it is read again, or in another batch"
            )
    reversed_batch = split[chosen.flip(0)]
    assert torch.equal(reversed_batch[0].flip(0), batch[0]), (
        f"{kind}[indices] must give the items in the order of the indices"
    )


def _check_indices(split: Split, places: Sequence[tuple[int, int, int]]) -> None:
    """Assert that the order is a function of its arguments, and within the split."""
    what = f"{type(split).__name__}.indices(seed, step, batch_size)"
    first = [split.indices(*place) for place in places]
    again = [split.indices(*place) for place in reversed(places)]
    for (_, _, size), drawn, repeated in zip(places, first, reversed(again), strict=True):
        fault = ids_fault(drawn, what, {"batch_size": size}, most=len(split) - 1)
        assert fault is None, fault
        assert torch.equal(drawn, repeated), f"{what} must give the same whenever it is called"
