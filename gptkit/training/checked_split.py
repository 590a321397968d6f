"""A split whose batches are checked: wrong ones would be trained on without a word, or crash."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from gptkit.data.split import Split, ids_fault
from gptkit.errors import PluginError
from gptkit.plugin import Data

CHECK = "`check_dataset` of gptkit.testing shows this before training"


class CheckedSplit(Split):
    """A split of a data set that refuses what the contract forbids.

    Args:
        split: the data set's own.
        name: what errors call it, "training" or "validation".
        data: whose sizes the batches must have.
        note: added to every exception of the split, if given.

    Raises:
        PluginError: from its methods, if the split returns something else than it should.
    """

    def __init__(self, split: Split, name: str, data: Data, *, note: str | None = None) -> None:
        self.split, self.stride, self.labels = split, split.stride, split.labels
        self.name, self.data, self.note = name, data, note

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        with self._noting():
            batch = self.split[indices]
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                kind = type(batch).__name__
                raise PluginError(f"the {self.name} split gives a {kind}, not x, y", hint=CHECK)
            x, y = batch
            axes = {"B": len(indices), "block_size": self.data.block_size}
            self._check(x, "x", axes, self.data.vocab_size - 1)
            self._check(y, "y", axes, self.data.vocab_size - 1, masked=True)
        return x, y

    def indices(self, seed: int, step: int, batch_size: int) -> Tensor:
        """The order of the split, checked."""
        with self._noting():
            drawn = self.split.indices(seed, step, batch_size)
            self._check(drawn, "indices()", {"batch_size": batch_size}, len(self.split) - 1)
        return drawn

    def _check(
        self, ids: Tensor, what: str, axes: Mapping[str, int], most: int, *, masked: bool = False
    ) -> None:
        what = f"{what} of the {self.name} split"
        if fault := ids_fault(ids, what, axes, most=most, masked=masked):
            raise PluginError(fault, hint=CHECK)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self.note:
                error.add_note(self.note)
            raise
