"""Small coloured shapes in ten classes, drawn from a seed: images without a download."""

import colorsys
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gptkit_cifar10.image_source import Chunk
from gptkit_cifar10.picture import Pixels

TRAIN = 6000
VAL = 600
VERSION = 1  # of the drawings; part of their digest
CANVAS = 128  # pixels; drawn at least this large, then reduced, so that edges are smooth
CHUNK = 500  # images drawn at a time

HUES = (0.0, 0.08, 0.15, 0.36, 0.5, 0.62, 0.78, 0.9)  # red to pink, easy to tell apart
Draw = ImageDraw.ImageDraw
Point = tuple[float, float]
Color = NDArray[np.float64]


def _polygon(*points: Point) -> Callable[[Draw, Point, float], None]:
    """A shape by its corners, relative to a centre of 0, 0 and a radius of 1."""

    def draw(pen: Draw, centre: Point, radius: float) -> None:
        x, y = centre
        pen.polygon([(x + radius * u, y + radius * v) for u, v in points], fill=255)

    return draw


def _circle(pen: Draw, centre: Point, radius: float) -> None:
    pen.circle(centre, radius, fill=255)


def _ring(pen: Draw, centre: Point, radius: float) -> None:
    pen.circle(centre, radius, fill=255)
    pen.circle(centre, 0.5 * radius, fill=0)


def _checker(pen: Draw, centre: Point, radius: float) -> None:
    x, y = centre
    pen.rectangle((x - radius, y - radius, x - 1, y - 1), fill=255)
    pen.rectangle((x, y, x + radius - 1, y + radius - 1), fill=255)


W = 0.36  # half the width of a bar
S = 0.3  # half the width of a cross's strokes
SHAPES: dict[str, Callable[[Draw, Point, float], None]] = {
    "bar": _polygon((-1, -W), (1, -W), (1, W), (-1, W)),
    "checker": _checker,
    "circle": _circle,
    "column": _polygon((-W, -1), (W, -1), (W, 1), (-W, 1)),
    "corner": _polygon((-1, -1), (-0.3, -1), (-0.3, 0.3), (1, 0.3), (1, 1), (-1, 1)),
    "cross": _polygon(
        (-S, -1), (S, -1), (S, -S), (1, -S), (1, S), (S, S),
        (S, 1), (-S, 1), (-S, S), (-1, S), (-1, -S), (-S, -S),
    ),
    "diamond": _polygon((0, -1), (0.7, 0), (0, 1), (-0.7, 0)),
    "ring": _ring,
    "square": _polygon((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": _polygon((0, -1), (1, 0.9), (-1, 0.9)),
}  # fmt: skip
"""How each class is drawn: a bar is horizontal, a column vertical, a corner an L."""


@dataclass(frozen=True)
class Shapes:
    """The drawings as an `ImageSource`.

    Args:
        seed: image number n is a function of (seed, n) alone.
        train: number of images for training; their classes take turns.
        val: number of images for validation.
    """

    seed: int
    train: int = TRAIN
    val: int = VAL

    @property
    def sha256(self) -> str:
        """Digest of everything that determines the drawings."""
        text = f"shapes {VERSION} {self.seed} {self.train} {self.val}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def key(self) -> str:
        """The digest."""
        return self.sha256

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the shapes."""
        return tuple(SHAPES)

    def chunks(self, size: int) -> Iterator[Chunk]:
        """All drawings, each made at this size."""
        ends = {True: (0, self.train), False: (self.train, self.train + self.val)}
        for training, (start, stop) in ends.items():
            for first in range(start, stop, CHUNK):
                numbers = np.arange(first, min(first + CHUNK, stop))
                pixels = np.stack([draw(self.seed, int(number), size) for number in numbers])
                yield Chunk(pixels, numbers % len(SHAPES), training)


def draw(seed: int, number: int, size: int) -> Pixels:
    """One drawing, (size, size, 3): a shape in a strong colour on dark or light grey.

    Args:
        seed: of the whole set.
        number: of the drawing; the last digit is its class.
        size: pixels a side.
    """
    random = np.random.default_rng([seed, number])
    shape = list(SHAPES.values())[number % len(SHAPES)]
    color, background = _colors(random)
    factor = -(-CANVAS // size)
    side = size * factor
    radius = random.uniform(0.36, 0.46)
    x, y = random.uniform(radius + 0.02, 0.98 - radius, 2)
    canvas = Image.new("L", (side, side))
    shape(ImageDraw.Draw(canvas), (side * x, side * y), side * radius)
    cover = np.asarray(canvas.reduce(factor), np.float64)[..., None] / 255
    pixels: Pixels = (cover * color + (1 - cover) * background).round().astype(np.uint8)
    return pixels


def _colors(random: Generator) -> tuple[Color, Color]:
    """A colour for the shape, and a grey for the background."""
    hue = random.choice(HUES) + random.uniform(-0.01, 0.01)
    color = 255 * np.array(colorsys.hsv_to_rgb(hue % 1, random.uniform(0.8, 1), 0.9))
    grey = random.choice([24, 228]) + random.uniform(-16, 16)
    return color, grey + random.uniform(-6, 6, 3)
