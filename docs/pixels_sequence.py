"""Draws docs/pixels-sequence.png: an image, what its palette leaves of it, and its tokens."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from gptkit_cifar10.codec import PixelCodec
from gptkit_cifar10.dataset import Cifar10
from gptkit_cifar10.shapes import Shapes

SIDE = 10
ITEM = 7  # a ring


def main() -> None:
    """Write the picture beside this file."""
    data = Cifar10(source="shapes", size=SIDE, colors=32).load()
    codec = data.codec
    assert isinstance(codec, PixelCodec)
    image = next(Shapes(0).chunks(96)).pixels[ITEM]
    x, y = data.train[torch.tensor([ITEM])]
    tokens = [int(x[0, 0]), *y[0].tolist()]
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    original, quantised, numbers = figure.subplots(1, 3)
    original.imshow(image)
    original.set_title("an image")
    quantised.imshow(codec.decode_array(tokens))
    quantised.set_title(f"{SIDE} x {SIDE} pixels, 32 colours")
    numbers.imshow(codec.decode_array(tokens), alpha=0.35)
    for i, token in enumerate(tokens[1:]):
        numbers.text(i % SIDE, i // SIDE, str(token), ha="center", va="center", fontsize=8)
    numbers.set_title(f"start {tokens[0]}, then {len(tokens) - 1} tokens")
    for axes in (original, quantised, numbers):
        axes.set_axis_off()
    figure.savefig(Path(__file__).with_name("pixels-sequence.png"), dpi=110)


if __name__ == "__main__":
    main()
