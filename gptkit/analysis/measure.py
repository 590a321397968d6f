"""What a trained model is worth: its loss, its classes by p(x | class), its features by probes.

The probe is image-gpt's (Chen et al. 2020): features averaged over the tokens after each block, a
logistic regression on them, accuracy on the validation split.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gptkit.errors import UsageError
from gptkit.plugin import Data, Split
from gptkit.runs.loaded import LoadedModel, open_with_data
from gptkit.training.trainer import Evaluation, evaluate

WEIGHT_DECAY = 1e-3
"""L2 penalty of the regression, on standardised features."""


@dataclass(frozen=True)
class Probe:
    """Accuracies on the validation split, each between 0 and 1."""

    layers: list[float]
    """Of the features after the embedding (first) and after each block."""
    raw: float | None
    """Of the same regression on the data itself, where it consists of numbers."""
    chance: float
    """Of always naming the most frequent class."""
    train_items: int
    val_items: int
    step: int

    def to_json(self) -> dict[str, object]:
        """The fields by name."""
        return asdict(self)


def probe_run(
    path: Path | None, *, which: str = "last", device: str = "auto", items: int = 10_000
) -> Probe:
    """Probe a run's model on its own data set's labels.

    Args:
        path: the run folder; None takes the newest one.
        which: "last", "best" or a step's number.
        device: where the features are computed.
        items: at most how many items of each split to use.

    Raises:
        UsageError: the data has no labels.
    """
    trained, data, _, batch_size = open_with_data(path, which=which, device=device)
    _check_labels(data)
    train, val = (_features(trained, split, items, batch_size) for split in (data.train, data.val))
    counts = torch.bincount(val.labels)
    return Probe(
        layers=[
            _accuracy(a, train.labels, b, val.labels)
            for a, b in zip(train.layers, val.layers, strict=True)
        ],
        raw=None
        if train.raw is None or val.raw is None
        else _accuracy(train.raw, train.labels, val.raw, val.labels),
        chance=float(counts.max() / counts.sum()),
        train_items=len(train.labels),
        val_items=len(val.labels),
        step=trained.state.step,
    )


def evaluate_run(
    path: Path | None, *, which: str = "last", device: str = "auto", by_class: bool = False
) -> tuple[Evaluation, float | None, LoadedModel]:
    """The loss over a run's whole validation split, the accuracy of `classify`, and the model.

    Args:
        path: the run folder; None takes the newest one.
        which: "last", "best" or a step's number.
        device: where to compute.
        by_class: whether to classify; the accuracy is None otherwise.
    """
    trained, data, run_device, batch_size = open_with_data(path, which=which, device=device)
    accuracy = classify(trained, data, batch_size=batch_size) if by_class else None
    result = evaluate(trained.model, data.val, run_device=run_device, batch_size=batch_size)
    return result, accuracy, trained


def classify(trained: LoadedModel, data: Data, *, batch_size: int) -> float:
    """Accuracy, on the validation split, of naming the class c with the highest p(x | c).

    Raises:
        UsageError: the data has no labels, or the model was not trained with a start per class.
    """
    labels = _check_labels(data)
    starts = trained.codec.starts
    if len(starts) != len(data.classes):
        raise UsageError(
            "this model has no start token per class", hint="train with class_conditional = true"
        )
    right = 0
    for indices in torch.split(torch.arange(len(labels)), batch_size):
        x, y = (part.to(trained.device) for part in data.val[indices])
        losses = torch.stack([_item_losses(trained, x, y, start[0]) for start in starts])
        right += int((losses.argmin(dim=0).cpu() == labels[indices]).sum())
    return right / len(labels)


@dataclass(frozen=True)
class _Features:
    layers: Tensor  # (n_layer + 1, N, C)
    raw: Tensor | None  # (N, numbers of an item)
    labels: Tensor  # (N,)


@torch.no_grad()
def _features(trained: LoadedModel, split: Split, items: int, batch_size: int) -> _Features:
    """Of at most so many items, drawn from all of the split."""
    generator = np.random.default_rng(0)
    chosen = torch.from_numpy(np.sort(generator.permutation(len(split))[:items]))
    starts = trained.codec.starts
    layers, raws = [], []
    for indices in torch.split(chosen, batch_size):
        x, y = split[indices]
        items_raw = [trained.codec.raw([*x[i, :1].tolist(), *y[i].tolist()]) for i in range(len(x))]
        raws += [torch.tensor([raw for raw in items_raw if raw is not None])]
        if len(starts) > 1:  # a start token per class would tell the class
            x = x.clone()
            x[:, 0] = starts[0][0]
        layers.append(trained.model.layer_features(x.to(trained.device)).cpu())
    raw = torch.cat(raws)
    labels = _labels(split)[chosen]
    return _Features(torch.cat(layers, dim=1), raw if len(raw) else None, labels)


def _accuracy(x: Tensor, labels: Tensor, x_val: Tensor, labels_val: Tensor) -> float:
    """Fit a logistic regression on standardised features; its accuracy on the other items."""
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0) + 1e-6
    x, x_val = (x - mean) / std, (x_val - mean) / std
    classes = int(max(labels.max(), labels_val.max())) + 1
    weight = torch.zeros(classes, x.size(1), requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), labels)
        loss = loss + WEIGHT_DECAY * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    predicted = F.linear(x_val, weight, bias).argmax(dim=1)
    return float((predicted == labels_val).float().mean())


@torch.no_grad()
def _item_losses(trained: LoadedModel, x: Tensor, y: Tensor, start: int) -> Tensor:
    x = x.clone()
    x[:, 0] = start
    return trained.model.token_losses(x, y).sum(dim=1)


def _check_labels(data: Data) -> Tensor:
    if data.train.labels is None or data.val.labels is None:
        raise UsageError("the data has no labels", hint="classification needs classes")
    return data.val.labels


def _labels(split: Split) -> Tensor:
    assert split.labels is not None  # _check_labels saw to it
    return split.labels
