from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gptkit.plugin import DataError
from gptkit_cifar10.images import Folder, open_folder


def opened(root: Path, *, val_fraction: float = 0.25, seed: int = 0) -> Folder:
    return open_folder(root, val_fraction=val_fraction, seed=seed)


def names(folder: Folder, *, training: bool) -> list[str]:
    items = [item for item in folder.items if item.training == training]
    return [item.path.relative_to(folder.root).as_posix() for item in items]


@pytest.mark.parametrize("val", ["val", "valid", "test"])
def test_a_split_of_its_own(image_folder: Callable[..., Path], val: str) -> None:
    counts = {"train/cat": 3, "train/ant": 2, f"{val}/cat": 1, f"{val}/ant": 1}
    folder = opened(image_folder(counts))
    assert folder.classes == ("ant", "cat")
    assert [item.label for item in folder.items] == [0, 0, 1, 1, 1, 0, 1]
    assert names(folder, training=True)[0] == "train/ant/000.png"
    assert names(folder, training=False) == [f"{val}/ant/000.png", f"{val}/cat/000.png"]


def test_validation_images_come_from_val_if_there_is_a_test_folder_too(
    image_folder: Callable[..., Path],
) -> None:
    folder = opened(image_folder({"train/a": 2, "val/a": 1, "test/a": 5}))
    assert names(folder, training=False) == ["val/a/000.png"]


def test_each_class_is_split_by_fraction(image_folder: Callable[..., Path]) -> None:
    root = image_folder({"a": 20, "b": 8, "c": 2, "d": 1})
    folder = opened(root)
    val = names(folder, training=False)
    assert [sum(name.startswith(f"{c}/") for name in val) for c in "abcd"] == [5, 2, 1, 0]
    assert not set(val) & set(names(folder, training=True))
    assert len(folder.items) == 31
    assert opened(root) == folder
    assert names(opened(root, seed=1), training=False) != val
    assert opened(root, seed=1).sha256 == folder.sha256
    assert opened(root, seed=1).key != folder.key


def test_only_images_count_at_any_depth_and_nothing_hidden(
    image_folder: Callable[..., Path],
) -> None:
    root = image_folder({"a": 2, "b/deep/er": 2, ".ipynb_checkpoints": 1})
    (root / "a" / "notes.txt").write_text("hello")
    (root / "a" / "._000.png").write_text("left by another system")
    (root / "labels.csv").write_text("hello")
    folder = opened(root, val_fraction=0.5)
    assert folder.classes == ("a", "b")
    assert len(folder.items) == 4


def test_hidden_folders_links_and_other_endings(
    image_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = image_folder({"a": 2, "a/.ipynb_checkpoints": 2, "b": 2})
    (root / "a" / "self").symlink_to(".")
    (root / "b" / "up").symlink_to("..")
    (root / "all").symlink_to(".")
    (root / "b" / "again.png").symlink_to("../a/000.png")
    (root / "b" / "notes.txt").write_text("hello")
    for ending in ("gif", "JFIF", "avif", "pcx"):
        Image.new("RGB", (4, 4)).save(root / "b" / f"x.{ending}")
    folder = opened(root)
    assert folder.classes == ("a", "b")
    assert [item.label for item in folder.items].count(0) == 2
    assert len(folder.items) == 2 + 2 + 4
    told = "1 hidden, 4 linked twice, 1 with other endings (.txt)"
    assert capsys.readouterr().err == f"note: {root}: {told}: skipped\n"


def test_a_class_of_gifs(image_folder: Callable[..., Path]) -> None:
    root = image_folder({"a": 2, "b": 0})
    for name in ("1.gif", "2.GIF"):
        Image.new("RGB", (4, 4)).save(root / "b" / name)
    assert len(opened(root).items) == 4


def test_an_image_is_in_one_split_alone(image_folder: Callable[..., Path]) -> None:
    root = image_folder({"train/a": 3, "val/a": 1})
    (root / "val/a/more.png").symlink_to(root / "train/a/000.png")
    (root / "train/a/linked").symlink_to(root / "val/a")
    folder = opened(root)
    assert len(names(folder, training=True)) == 3
    assert names(folder, training=False) == ["val/a/000.png"]


def test_the_order_within_a_class_is_by_folder_then_by_name(
    image_folder: Callable[..., Path],
) -> None:
    root = image_folder({"train/a": 1, "train/a/b": 1, "train/a-b": 1, "val/a": 1, "val/a-b": 1})
    assert names(opened(root), training=True) == [
        "train/a/000.png",
        "train/a/b/000.png",
        "train/a-b/000.png",
    ]


def test_progress_comes_in_small_steps(image_folder: Callable[..., Path]) -> None:
    folder = opened(image_folder({"a": 300}))
    assert [len(chunk.labels) for chunk in folder.chunks(1)] == [225, 75]
    many = Folder(folder.root, folder.classes, folder.items[:1] * 600)
    assert max(len(chunk.labels) for chunk in many.chunks(1)) == 256


def test_pixels_and_labels(image_folder: Callable[..., Path]) -> None:
    folder = opened(image_folder({"train/b": 1, "train/a": 1, "test/a": 1, "test/b": 1}))
    train, val = folder.chunks(4)
    assert (train.training, val.training) == (True, False)
    assert train.labels.tolist() == val.labels.tolist() == [0, 1]
    for pixels, item in zip((*train.pixels, *val.pixels), folder.items, strict=True):
        assert np.array_equal(pixels, np.asarray(Image.open(item.path)))


def test_the_digest_is_that_of_contents_and_names(image_folder: Callable[..., Path]) -> None:
    root = image_folder({"a": 4, "b": 4})
    first = opened(root).sha256
    moved = root.rename(root.with_name("moved"))
    assert opened(moved).sha256 == first
    (moved / "b" / "000.png").rename(moved / "b" / "x.png")
    second = opened(moved).sha256
    Image.new("RGB", (4, 4)).save(moved / "b" / "x.png")
    assert len({first, second, opened(moved).sha256}) == 3


def test_unreadable_images_are_named_with_how_many_are_fine(
    image_folder: Callable[..., Path],
) -> None:
    root = image_folder({"train/a": 3, "train/b": 3, "test/a": 3, "test/b": 3})
    (root / "train/a/001.png").write_text("no image")
    whole = (root / "test/b/000.png").read_bytes()
    (root / "test/b/000.png").write_bytes(whole[:50])
    (root / "test/b/002.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        list(opened(root).chunks(4))
    text = str(caught.value)
    assert text.startswith(f"{root}: 3 of 12 images cannot be read: train/a/001.png (not an image)")
    assert "test/b/000.png (" in text
    assert text.endswith("test/b/002.png (not an image); the other 9 are fine")
    assert caught.value.hint == "repair or remove them"


def test_of_many_unreadable_images_the_first_are_named(image_folder: Callable[..., Path]) -> None:
    root = image_folder({"a": 20})
    for number in range(9):
        (root / f"a/{number:03}.png").write_text("no image")
    with pytest.raises(DataError, match=r"9 of 20 .* and 4 more; the other 11 are fine"):
        list(opened(root).chunks(4))


@pytest.mark.parametrize(
    ("counts", "fault", "advice"),
    [
        ({}, "no such folder", "an unpacked folder"),
        ({"train/a": 1, "test/a": 0}, "test: no image in the class folder a", "end in .jpg"),
        ({"a": 5, "b": 0, "c": 0}, "images: no image in the class folders b, c", "remove it"),
        (
            {"train/a": 1, "train/b": 1, "test/b": 1, "test/c": 1},
            "train/ and test/ have different classes: only in train/: a; only in test/: c",
            "the same folders",
        ),
        ({"train/a": 1, "train/b": 1, "val/b": 1}, "classes: only in train/: a", "same folders"),
        (
            {"train/a": 1, "train/b": 1},
            "class folders in train/, but no val/ or test/",
            "add it, or",
        ),
        ({"training/a": 1, "test/a": 1}, "folders in test/, but no train/ beside", "add it, or"),
        ({"train": 0, "val": 0}, "train: has no class folders", "a single folder is enough"),
        ({".": 3}, "images: has no class folders", "a single folder is enough"),
        ({"a": 1, "b": 1}, "one image per class leaves none for validation", "add images"),
    ],
)
def test_folders_that_cannot_be_used(
    image_folder: Callable[..., Path], counts: dict[str, int], fault: str, advice: str
) -> None:
    root = image_folder(counts)
    with pytest.raises(DataError) as caught:
        opened(root)
    assert str(caught.value).startswith(str(root))
    assert fault in str(caught.value)
    assert advice in str(caught.value.hint)


def test_a_class_whose_name_is_not_utf8_is_named(image_folder: Callable[..., Path]) -> None:
    root = image_folder({"a": 2, "b": 2})
    (root / "b").rename(root / "caf\udce9")
    with pytest.raises(DataError, match="a name that is not UTF-8: a, caf\udce9"):
        opened(root)
    (root / "caf\udce9").rename(root / "café")
    assert opened(root).classes == ("a", "café")


def test_a_file_is_no_folder(image_file: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="not a folder"):
        opened(image_file())


def test_images_that_change_while_they_are_read(image_folder: Callable[..., Path]) -> None:
    folder = opened(image_folder({"a": 4}))
    chunks = folder.chunks(4)
    next(chunks)
    Image.new("RGB", (4, 4)).save(folder.items[0].path)
    with pytest.raises(DataError, match="changed while they were read"):
        list(chunks)


def test_images_that_go_while_they_are_read(image_folder: Callable[..., Path]) -> None:
    folder = opened(image_folder({"a": 4}))
    folder.items[0].path.unlink()
    with pytest.raises(DataError, match=r"000\.png: cannot be read: No such file"):
        list(folder.chunks(4))
