"""The losses of two trivial models of pixels, beside a run's model.

    python -m benchmarks.pixel_baselines RUN

Prints nats per pixel on the validation images of a run's data: of the colours' frequencies
(unigram), of "the colour to the left, or else by frequency" (copy left), and of the model.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gptkit.plugin import Split
from gptkit.runs.loaded import load_run
from gptkit.training.evaluate import evaluate
from gptkit_cifar10.codec import PixelCodec


def main() -> None:
    """Measure the run that the command line names, or the newest."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    run = load_run(path)
    loaded, data, codec = run.model, run.data, run.model.codec
    assert isinstance(codec, PixelCodec)
    train, val = pixels(data.train), pixels(data.val)
    counts = np.bincount(train.ravel(), minlength=codec.first_start) + 1.0
    p = counts / counts.sum()
    model = evaluate(loaded.model, data.val, run_device=run.run_device, batch_size=run.batch_size)
    print(f"unigram    {-np.log(p[val]).mean():.4f} nats/pixel")
    print(f"copy left  {copy_left(train, val, p, width=codec.size):.4f} nats/pixel")
    print(f"model      {model.loss:.4f} nats/pixel (step {loaded.state.step})")


def pixels(split: Split) -> NDArray[np.int64]:
    """All images of a split as rows of colours."""
    batches = torch.split(torch.arange(len(split)), 1000)
    return np.concatenate([split[indices][1].numpy() for indices in batches])


def copy_left(
    train: NDArray[np.int64], val: NDArray[np.int64], p: NDArray[np.float64], *, width: int
) -> float:
    """Nats per pixel of a mixture whose weight is fitted on the training images."""
    first = np.arange(val.shape[1]) % width == 0  # has nothing to its left
    same, share = left_equals(train, width), 0.5
    for _ in range(20):  # expectation maximisation
        posterior = same * share / (same * share + (1 - share) * p[train])
        share = float(posterior[:, ~first].mean())
    same = left_equals(val, width)
    mixed = same * share + (1 - share) * p[val]
    return float(-np.log(np.where(first, p[val], mixed)).mean())


def left_equals(images: NDArray[np.int64], width: int) -> NDArray[np.bool_]:
    """Which pixels have the colour of their left neighbour."""
    same = np.zeros(images.shape, dtype=bool)
    same[:, 1:] = images[:, 1:] == images[:, :-1]
    same[:, ::width] = False
    return same


if __name__ == "__main__":
    main()
