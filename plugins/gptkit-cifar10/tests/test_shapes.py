import numpy as np
import pytest

from gptkit_cifar10.shapes import SHAPES, TRAIN, VAL, Shapes, draw

NAMES = list(SHAPES)


def cover(number: int, size: int) -> np.ndarray:
    """Where the shape is, from 0 to 1: how far each pixel is from the corner's colour."""
    pixels = draw(0, number, size).astype(int)
    distance = np.abs(pixels - pixels[0, -1]).sum(2)
    return distance / distance.max()


def test_a_drawing_is_a_function_of_seed_and_number() -> None:
    assert np.array_equal(draw(3, 17, 16), draw(3, 17, 16))
    assert not np.array_equal(draw(3, 17, 16), draw(4, 17, 16))
    assert not np.array_equal(draw(3, 17, 16), draw(3, 27, 16))


@pytest.mark.parametrize("size", [1, 5, 8, 16, 32, 200])
def test_any_size(size: int) -> None:
    chunks = list(Shapes(0, 10, 5).chunks(size))
    assert [chunk.pixels.shape for chunk in chunks] == [(10, size, size, 3), (5, size, size, 3)]
    assert [chunk.training for chunk in chunks] == [True, False]
    assert [chunk.labels.tolist() for chunk in chunks] == [list(range(10)), list(range(5))]


def test_there_are_ten_classes_in_turn() -> None:
    assert len(NAMES) == 10
    assert sorted(NAMES) == NAMES
    labels = np.concatenate([chunk.labels for chunk in Shapes(0).chunks(1)])
    assert len(labels) == TRAIN + VAL
    assert (np.bincount(labels) == (TRAIN + VAL) // 10).all()


@pytest.mark.parametrize("size", [8, 16])
def test_classes_stay_apart_when_small(size: int) -> None:
    def features(first: int, last: int) -> np.ndarray:
        return np.stack([cover(number, size).ravel() for number in range(first, last)])

    known, asked = features(0, 2000), features(2000, 2200)
    distances = (asked**2).sum(1)[:, None] - 2 * asked @ known.T + (known**2).sum(1)
    assert (distances.argmin(1) % 10 == np.arange(200) % 10).mean() > 0.95


def test_shapes_look_like_their_names() -> None:
    masks = {name: cover(NAMES.index(name) + 10, 64) > 0.5 for name in NAMES}
    boxes = {}
    for name, mask in masks.items():
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes[name] = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height_by_width = {name: box.shape[0] / box.shape[1] for name, box in boxes.items()}
    filled = {name: box.mean() for name, box in boxes.items()}
    assert height_by_width["bar"] < 0.5
    assert height_by_width["column"] > 2
    assert filled["square"] > 0.99
    assert 0.74 < filled["circle"] < 0.82
    assert 0.45 < filled["diamond"] < 0.55
    assert 0.45 < filled["triangle"] < 0.55
    assert not boxes["ring"][boxes["ring"].shape[0] // 2, boxes["ring"].shape[1] // 2]
    assert not boxes["corner"][0, -1]
    assert boxes["corner"][-1].all()
    assert boxes["checker"][0, 0] and not boxes["checker"][0, -1]
    assert boxes["cross"][:, boxes["cross"].shape[1] // 2].all() and not boxes["cross"][0, 0]


def test_dark_and_light_grounds_and_many_colours() -> None:
    corners = np.array([draw(0, number, 8)[0, -1] for number in range(0, 100, 10)], int)
    assert corners.min() < 64 and corners.max() > 192


def test_another_seed_is_another_data_set() -> None:
    assert Shapes(0).sha256 == Shapes(0).key != Shapes(1).key
    assert Shapes(0).classes == Shapes(1).classes == tuple(NAMES)
