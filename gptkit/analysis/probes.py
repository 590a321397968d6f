"""Linear probes: how well a linear classifier reads the classes from each layer's features.

As in image-gpt (Chen et al. 2020): features averaged over the tokens after each block, a logistic
regression on them, its accuracy on the validation split.
"""

import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gptkit.analysis.classification import labels_of
from gptkit.codec import ImageCodec
from gptkit.data.progress import progress
from gptkit.data.split import Split
from gptkit.files import write_atomically, write_json, writing
from gptkit.memory import Need
from gptkit.runs.loaded import LoadedModel, load_run

PROBE = Need("this probe", "fewer items: --items")
WEIGHT_DECAY = 1e-3
"""L2 penalty of the regression, on standardised features."""


@dataclass(frozen=True)
class Probe:
    """Accuracies on the validation split, each between 0 and 1."""

    layers: list[float]
    """Of the features after the embedding (first) and after each block."""
    raw: float | None
    """Of the same regression on the data itself; None if tokens do not stand for numbers."""
    chance: float
    """Of always naming the most frequent class."""
    train_items: int
    val_items: int
    step: int

    def to_json(self) -> dict[str, object]:
        """The fields by name."""
        return asdict(self)


@PROBE.explained()
def probe_run(
    path: Path | None, *, checkpoint: str | int = "last", device: str = "auto", items: int = 10_000
) -> Probe:
    """Probe a run's model on the labels of its own data set.

    Args:
        path: the run folder; None takes the newest one.
        checkpoint: "last", "best" or a step's number.
        device: where the features are computed.
        items: at most how many items of each split to use.

    Raises:
        UsageError: the data has no labels.
    """
    run = load_run(path, checkpoint=checkpoint, device=device)
    splits = (run.data.train, run.data.val)
    for split in splits:
        labels_of(split)
    total = sum(min(items, len(split)) for split in splits)
    with progress("computing features", total=total, unit="items") as advance:
        train, val = (
            _features(run.model, split, items, run.batch_size, advance) for split in splits
        )
    counts, accuracies = torch.bincount(val.labels), []
    pairs = list(zip([*train.layers, *train.raw], [*val.layers, *val.raw], strict=True))
    with progress("fitting", total=len(pairs), unit="layers") as advance:
        for a, b in pairs:
            accuracies.append(_accuracy(a, train.labels, b, val.labels))
            advance(1)
    return Probe(
        layers=accuracies[: len(train.layers)],
        raw=accuracies[-1] if train.raw else None,
        chance=float(counts.max() / counts.sum()),
        train_items=len(train.labels),
        val_items=len(val.labels),
        step=run.model.state.step,
    )


def save_probe(result: Probe, folder: Path) -> Path | None:
    """Write probe.json, and probe.png if matplotlib is installed; returns the path of the latter.

    Raises:
        RunError: a file cannot be written.
    """
    write_json(folder / "probe.json", result.to_json())
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator, PercentFormatter
    except ImportError:
        return None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(len(result.layers)), result.layers, marker="o", label="features")
    if result.raw is not None:
        axes.axhline(result.raw, linestyle="--", color="gray", label="raw data")
    axes.axhline(result.chance, linestyle=":", color="gray", label="chance")
    axes.set(xlabel="block (0: embedding)", ylabel="accuracy", title="Linear probe by layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, dpi=120)
    path = folder / "probe.png"
    with writing(path):
        write_atomically(path, image.getvalue())
    return path


@dataclass(frozen=True)
class _Features:
    layers: list[Tensor]
    """Of the embedding and each block, (N, C)."""
    raw: list[Tensor]
    """The data itself, one tensor (N, numbers of an item); empty as for `Probe.raw`."""
    labels: Tensor  # (N,)


@torch.no_grad()
def _features(
    loaded: LoadedModel,
    split: Split,
    items: int,
    batch_size: int,
    advance: Callable[[int], None],
) -> _Features:
    """Features of at most `items` items, chosen at random from the whole split."""
    generator = np.random.default_rng(0)
    chosen = torch.from_numpy(np.sort(generator.permutation(len(split))[:items]))
    starts, numbers = loaded.codec.starts, _numbers(loaded)
    layers, raw = [], []
    for indices in torch.split(chosen, batch_size):
        x, y = split[indices]
        if numbers is not None:
            raw.append(numbers[y].flatten(1))
        if len(starts) > 1:  # a start token per class would reveal the class
            x = x.clone()
            x[:, 0] = starts[0][0]
        layers.append(loaded.model.layer_features(x.to(loaded.device)).cpu())
        advance(len(indices))
    return _Features(
        layers=list(torch.cat(layers, dim=1)),
        raw=[torch.cat(raw)] if raw else [],
        labels=labels_of(split)[chosen],
    )


def _numbers(loaded: LoadedModel) -> Tensor | None:
    """The numbers that each token id stands for, in 0 to 1, (V, n); None if not images."""
    codec = loaded.codec
    if not isinstance(codec, ImageCodec):
        return None
    return torch.tensor(codec.colors or [[level] for level in range(256)]) / 255


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
