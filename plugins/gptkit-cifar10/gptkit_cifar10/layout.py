"""Which files of a folder are images, of which class, and for training or for validation.

A folder per class, with images at any depth, as `torchvision.datasets.ImageFolder` reads it. The
class folders may be in `train` and in one of `val`, `valid` and `test`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from gptkit.plugin import DataError, find_files
from gptkit_cifar10.picture import endings

TRAIN = "train"
VAL = ("val", "valid", "test")  # the first that exists is the validation split
MOST_NAMED = 10  # classes in an error

ByClass = dict[str, list[Path]]
"""The images of every class."""


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
        classes, (train, held_out) = _read(root / TRAIN, val)
        items = _items(train, classes, training=True) + _items(held_out, classes, training=False)
    else:
        _check_no_half_split(root)
        classes, (found,) = _read(root)
        items = _split(_items(found, classes, training=True), val_fraction, seed)
        if items[-1].training:
            raise DataError(
                f"{root}: one image per class leaves none for validation",
                hint="add images, or a split of your own in train/ and val/",
            )
    return classes, tuple(items)


def _read(*parts: Path) -> tuple[tuple[str, ...], list[ByClass]]:
    """The classes, which are the same in all parts; and the images of each part.

    A link that leads to what is counted elsewhere is no class.
    """
    found = [{name: list[Path]() for name in _class_folders(part)} for part in parts]
    for path in find_files(*parts, endings=endings(), in_folders=True):
        of = next(i for i, part in enumerate(parts) if path.is_relative_to(part))
        found[of][path.relative_to(parts[of]).parts[0]].append(path)
    for part, by_class in zip(parts, found, strict=True):
        for name in [n for n, files in by_class.items() if not files and (part / n).is_symlink()]:
            del by_class[name]
        _check_classes(part, by_class)
    _check_same(parts, found)
    return tuple(found[0]), found


def _check_classes(folder: Path, by_class: ByClass) -> None:
    if not by_class:
        raise DataError(
            f"{folder}: has no class folders",
            hint="put the images into folders, one per class; a single folder is enough",
        )
    if empty := [name for name, files in by_class.items() if not files]:
        raise DataError(
            f"{folder}: no image in the class {'folder' if len(empty) == 1 else 'folders'} "
            f"{listing(empty)}",
            hint="remove it, or add images that end in .jpg, .png or what else Pillow reads",
        )


def _check_same(parts: Sequence[Path], found: Sequence[ByClass]) -> None:
    train, val = parts[0], parts[-1]
    if found[0].keys() != found[-1].keys():
        faults = [
            f"only in {place.name}/: {listing(names)}"
            for place, names in (
                (train, [name for name in found[0] if name not in found[-1]]),
                (val, [name for name in found[-1] if name not in found[0]]),
            )
            if names
        ]
        raise DataError(
            f"{train.parent}: {train.name}/ and {val.name}/ have different classes: "
            f"{'; '.join(faults)}",
            hint="both need the same folders, with at least one image in each",
        )


def _class_folders(folder: Path) -> list[str]:
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    names = sorted(entry.name for entry in entries if entry.is_dir())
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{folder}: a class folder has a name that is not UTF-8: {listing(names)}",
            hint="rename the folder",
        ) from error
    return names


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


def _items(by_class: ByClass, classes: tuple[str, ...], *, training: bool) -> list[Item]:
    return [
        Item(path, label, training)
        for label, name in enumerate(classes)
        for path in sorted(by_class[name], key=lambda path: (str(path.parent), path.name))
    ]


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
