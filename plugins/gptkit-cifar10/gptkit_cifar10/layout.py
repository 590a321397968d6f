"""Which files of a folder are images, of which class, and for training or for validation.

The layout is that of `torchvision.datasets.ImageFolder`: a folder per class, with images at any
depth. The class folders may be in `train` and in one of `val`, `valid` and `test`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from gptkit.plugin import DataError

TRAIN = "train"
VAL = ("val", "valid", "test")  # the first that exists is the validation split
MOST_NAMED = 10  # classes in an error


@dataclass(frozen=True)
class Item:
    """An image file."""

    path: Path
    label: int
    """Index into the classes."""
    training: bool


def read_layout(
    root: Path, *, val_fraction: float, seed: int
) -> tuple[tuple[str, ...], tuple[Item, ...]]:
    """The class names, and the images: those for training first, each part sorted by path.

    Without a train folder, `val_fraction` of each class is for validation, at least one image but
    never all of them; `seed` chooses which.

    Raises:
        DataError: the folder or its images are missing, a class is empty, or the classes of the two
            splits differ.
        OSError: a folder cannot be read.
    """
    if not root.is_dir():
        fault = "not a folder" if root.exists() else "no such folder"
        raise DataError(f"{root}: {fault}", hint="set path to an unpacked folder of images")
    if (root / TRAIN).is_dir() and (val := _validation(root)):
        classes = _same_classes(root / TRAIN, val)
        items = _items(root / TRAIN, classes, training=True)
        items += _items(val, classes, training=False)
    else:
        classes = _classes(root)
        _check_no_half_split(root)
        items = _split(_items(root, classes, training=True), val_fraction, seed)
        if items[-1].training:
            raise DataError(
                f"{root}: one image per class leaves none for validation",
                hint="add images, or a split of your own in train/ and val/",
            )
    return classes, tuple(items)


def _validation(root: Path) -> Path | None:
    return next((root / name for name in VAL if (root / name).is_dir()), None)


def _check_no_half_split(root: Path) -> None:
    """Refuse `train` or `test` alone, which would be taken for a class."""
    for part in (TRAIN, *VAL):
        if (root / part).is_dir() and any(entry.is_dir() for entry in (root / part).iterdir()):
            missing = "val/ or test/" if part == TRAIN else f"{TRAIN}/"
            raise DataError(
                f"{root}: has class folders in {part}/, but no {missing} beside it",
                hint=f"add it, or set path = {str(root / part)!r} to split it by val_fraction",
            )


def _same_classes(train: Path, val: Path) -> tuple[str, ...]:
    classes, others = _classes(train), _classes(val)
    if classes != others:
        faults = [
            f"only in {place.name}/: {listing(names)}"
            for place, names in (
                (train, [name for name in classes if name not in others]),
                (val, [name for name in others if name not in classes]),
            )
            if names
        ]
        raise DataError(
            f"{train.parent}: {train.name}/ and {val.name}/ have different classes: "
            f"{'; '.join(faults)}",
            hint="both need the same folders, with at least one image in each",
        )
    return classes


def _classes(folder: Path) -> tuple[str, ...]:
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    classes = tuple(sorted(entry.name for entry in entries if entry.is_dir()))
    if not classes:
        raise DataError(
            f"{folder}: has no class folders",
            hint="put the images into folders, one per class; a single folder is enough",
        )
    return classes


def _items(folder: Path, classes: tuple[str, ...], *, training: bool) -> list[Item]:
    # Imported here, since torchvision takes a second.
    from torchvision.datasets.folder import (  # type: ignore[import-untyped]
        IMG_EXTENSIONS,
        has_file_allowed_extension,
        make_dataset,
    )

    def is_image(path: str) -> bool:
        hidden = Path(path).name.startswith(".")
        return not hidden and has_file_allowed_extension(path, IMG_EXTENSIONS)

    labels = {name: label for label, name in enumerate(classes)}
    found = make_dataset(str(folder), labels, is_valid_file=is_image, allow_empty=True)
    counts = Counter(label for _, label in found)
    if empty := [name for name, label in labels.items() if not counts[label]]:
        raise DataError(
            f"{folder}: no image in the class {'folder' if len(empty) == 1 else 'folders'} "
            f"{listing(empty)}",
            hint=f"remove it, or add images that end in {', '.join(IMG_EXTENSIONS)}",
        )
    return [Item(Path(path), label, training) for path, label in found]


def _split(items: list[Item], val_fraction: float, seed: int) -> list[Item]:
    """The same items, with a share of each class, but never all of it, for validation."""
    random, chosen = np.random.default_rng(seed), set[int]()
    labels = np.array([item.label for item in items])
    for label in range(labels.max() + 1):
        own = np.flatnonzero(labels == label)
        share = max(1, round(len(own) * Fraction(str(val_fraction))))
        order = random.permutation(own).tolist()
        chosen.update(order[: min(share, len(own) - 1)])
    train = [item for index, item in enumerate(items) if index not in chosen]
    return train + [Item(items[i].path, items[i].label, False) for i in sorted(chosen)]


def listing(names: Sequence[str], *, most: int = MOST_NAMED) -> str:
    """The first names of a list, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
