"""Validation: the losses of a model that is being trained, and of further sets of its weights."""

from collections.abc import Collection
from typing import Literal

from gptkit.data.split import Split
from gptkit.errors import PluginError
from gptkit.model.gpt import GPT
from gptkit.plugin import Data, TrainState
from gptkit.recipe.options import TrainOptions
from gptkit.training import finite, weight_sets
from gptkit.training.callbacks import Callbacks
from gptkit.training.checked_split import CheckedSplit
from gptkit.training.device import RunDevice
from gptkit.training.distributed import Ranks
from gptkit.training.evaluate import evaluate
from gptkit.training.micro_batches import size_in

NAMES = {"train": "training", "val": "validation"}
"""What errors call the splits."""


class Validation:
    """Measures losses between the steps. All ranks must call the same methods.

    Args:
        model: the plain one.
        data: its splits.
        dataset: the data set's name, for errors.
        options: sizes of the batches, which stay the same in the whole training.
        run_device: where and in which precision to compute.
        ranks: the processes that train together; each computes a part.
    """

    def __init__(
        self,
        model: GPT,
        data: Data,
        *,
        dataset: str,
        options: TrainOptions,
        run_device: RunDevice,
        ranks: Ranks,
    ) -> None:
        self.data, self.dataset = data, dataset
        self.model, self.splits = model, {"val": data.val, "train": data.train}
        self.run_device, self.ranks = run_device, ranks
        self.limit = options.eval_batches
        self.batch_size = size_in(ranks.batch_slice(options.batch_size), options.micro_batch_size)
        """Sequences per forward pass on this rank, which may be fewer than the recipe's."""
        self.parts = options.batch_size // self.batch_size
        """Forward passes that a batch of the recipe's size takes."""

    def measure(
        self,
        split: Literal["val", "train"] | Split = "val",
        *,
        batches: int | None = None,
        what: str,
    ) -> float:
        """The mean loss of the current weights over a split, in nats per token.

        Args:
            split: one of the data's, by name, or another one.
            batches: how many to measure, of the recipe's size; None measures the whole split.
            what: the step and the loss, for errors.

        Raises:
            DataError: every target is masked.
            DivergedError: the loss is not finite.
            PluginError: there is no split of that name, nothing to measure, or no batch in it.
        """
        found = self.splits.get(split) if isinstance(split, str) else split
        if found is None or (batches is not None and batches < 1):
            raise PluginError(
                f"evaluate({split!r}, batches={batches}): no such split, or no batch",
                hint='"val", "train" or a Split; at least one batch, or None for all',
            )
        name = NAMES.get(split, "other") if isinstance(split, str) else "other"
        note = f"raised by the data set {self.dataset} in the {name} split"
        loss = evaluate(
            self.model,
            CheckedSplit(found, name, self.data, note=note),
            name=f"the {name} split of the data set {self.dataset}",
            run_device=self.run_device,
            batch_size=self.batch_size,
            batches=batches and batches * self.parts,
            ranks=self.ranks,
            document_start=self.data.document_start,
            document_end=self.data.document_end,
        ).loss
        finite.require_finite(loss, what)
        return loss

    def update(self, state: TrainState, callbacks: Callbacks) -> None:
        """Set the state's validation losses: of the model, and of what the callbacks offer.

        A set that a rank lacks, since its callback failed there, is not measured.

        Raises:
            DivergedError: a loss is not finite; the state keeps the losses before it.
            PluginError: the weights that a callback offers do not fit the model.
        """
        what, losses = f"step {state.step}: the validation loss", {}
        own = self.measure(batches=self.limit, what=what)
        sets = weight_sets.collect(callbacks, self.model, state)
        for name in self._on_all_ranks(sets):
            with weight_sets.swapped(self.model, sets[name].tensors):
                losses[name] = self.measure(batches=self.limit, what=f"{what} of {name}")
        state.val_loss, state.val_losses, state.val_step = own, losses, state.step

    def _on_all_ranks(self, names: Collection[str]) -> list[str]:
        """Those of the first rank's names that all ranks have, in its order."""
        mine = set(names)
        of_first = self.ranks.broadcast(" ".join(names)).split()
        return [name for name in of_first if not self.ranks.any(name not in mine)]
