"""Evaluation of a run's model: its loss, and its accuracy in classifying by p(x | class)."""

import torch
from torch import Tensor

from gptkit.data.progress import progress
from gptkit.data.split import Split
from gptkit.errors import UsageError
from gptkit.runs.loaded import LoadedModel, LoadedRun


def classify(run: LoadedRun) -> float:
    """Accuracy, on the validation split, of choosing the class c with the highest p(x | c).

    Raises:
        UsageError: the data has no labels, or the model was not trained with a start per class.
    """
    labels = labels_of(run.data.val)
    starts = run.model.codec.starts
    if len(starts) != len(run.data.classes):
        raise UsageError(
            "this model has no start token per class", hint="train with class_conditional = true"
        )
    correct = 0
    with progress("classifying", total=len(labels), unit="items") as advance:
        for indices in torch.split(torch.arange(len(labels)), run.batch_size):
            x, y = (part.to(run.model.device) for part in run.data.val[indices])
            losses = torch.stack([_item_losses(run.model, x, y, start[0]) for start in starts])
            correct += int((losses.argmin(dim=0).cpu() == labels[indices]).sum())
            advance(len(indices))
    return correct / len(labels)


def labels_of(split: Split) -> Tensor:
    """The labels of a split's items, int64 (len(split),).

    Raises:
        UsageError: it has none.
    """
    if split.labels is None:
        raise UsageError("the data has no labels", hint="use a data set with classes")
    return split.labels


@torch.no_grad()
def _item_losses(loaded: LoadedModel, x: Tensor, y: Tensor, start: int) -> Tensor:
    """The loss of each item (B,) if it starts with the token `start`."""
    x = x.clone()
    x[:, 0] = start
    return loaded.model.token_losses(x, y).sum(dim=1)
