import hashlib
import json
import os
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from gptkit.plugin import Data, DataError, Split
from gptkit.testing import check_dataset
from gptkit_cifar10 import shapes
from gptkit_cifar10.codec import PixelCodec
from gptkit_cifar10.dataset import Cifar10
from gptkit_cifar10.image_source import Chunk
from gptkit_cifar10.picture import read_picture
from gptkit_cifar10.tokens import encoded

COUNTS = {"train/cat": 5, "train/dog": 3, "test/cat": 2, "test/dog": 1}


@pytest.fixture
def root(image_folder: Callable[..., Path]) -> Path:
    return image_folder(COUNTS)


def load(root: Path, **options: object) -> Data:
    return Cifar10.model_validate({"path": root, "size": 4, "colors": 8} | options).load()


def codec_of(data: Data) -> PixelCodec:
    assert isinstance(data.codec, PixelCodec)
    return data.codec


def labels_of(split: Split) -> list[int]:
    assert split.labels is not None
    assert split.labels.dtype == torch.int64
    return split.labels.tolist()  # type: ignore[no-any-return]


def all_of(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    return split[torch.arange(len(split))]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"colors": "rgb"},
        {"size": 1},
        {"flip": True, "class_conditional": True},
        {"source": "shapes", "path": None, "class_conditional": True},
    ],
    ids=str,
)
def test_contract(root: Path, options: dict[str, object]) -> None:
    dataset = Cifar10.model_validate({"path": root, "size": 4, "colors": 8} | options)
    data = check_dataset(dataset, prompts=[str(root / "train/cat/000.png")])
    codec = codec_of(data)
    assert (data.vocab_size, data.block_size) == (codec.vocab_size, codec.length - 1)
    assert len(labels_of(data.train)) == len(data.train)
    assert data.train.stride == data.val.stride == 1


def test_items_are_whole_images_behind_their_start_token(root: Path) -> None:
    data = load(root, colors="rgb")
    assert (len(data.train), len(data.val), data.vocab_size, data.block_size) == (8, 3, 257, 48)
    assert data.classes == ("cat", "dog")
    assert labels_of(data.train) == [0] * 5 + [1] * 3
    assert labels_of(data.val) == [0, 0, 1]
    x, y = all_of(data.train)
    assert (x[:, 0] == 256).all()
    assert torch.equal(x[:, 1:], y[:, :-1])
    for number, name in ((0, "train/cat/000.png"), (7, "train/dog/002.png")):
        assert y[number].tolist() == read_picture(root / name, 4).ravel().tolist()
        assert [256, *y[number].tolist()] == data.codec.encode(str(root / name))


def test_a_prompt_reads_as_the_training_image_did(root: Path) -> None:
    data = load(root, size=3)
    expected = data.codec.encode(str(root / "test/dog/000.png"))
    x, y = data.val[torch.tensor([2])]
    assert [*x[0].tolist(), int(y[0, -1])] == expected
    assert len(codec_of(data).palette) == 8


def test_each_class_has_a_start_token(root: Path) -> None:
    plain, data = load(root), load(root, class_conditional=True)
    assert (plain.vocab_size, data.vocab_size) == (9, 10)
    assert codec_of(plain).classes == ()
    assert codec_of(data).classes == data.classes == plain.classes == ("cat", "dog")
    for split in (data.train, data.val):
        assert all_of(split)[0][:, 0].tolist() == [8 + label for label in labels_of(split)]
    assert torch.equal(all_of(data.train)[1], all_of(plain.train)[1])


@pytest.mark.parametrize("colors", [8, "rgb"])
def test_flip_doubles_the_training_items(root: Path, colors: object) -> None:
    plain = load(root, colors=colors, class_conditional=True)
    data = load(root, colors=colors, class_conditional=True, flip=True)
    assert len(data.train) == 2 * len(plain.train)
    assert labels_of(data.train) == [label for label in labels_of(plain.train) for _ in range(2)]
    (x, y), (x0, y0) = all_of(data.train), all_of(plain.train)
    assert torch.equal(x[::2], x0)
    assert torch.equal(y[::2], y0)
    assert torch.equal(x[1::2, 0], x0[:, 0])
    mirrored = y0.reshape(8, 4, 4, -1).flip(2).reshape(8, -1)
    assert torch.equal(y[1::2], mirrored)
    assert torch.equal(x[1::2, 1:], mirrored[:, :-1])
    assert torch.equal(all_of(data.val)[1], all_of(plain.val)[1])
    assert data.val.labels is not None
    assert len(data.val) == len(data.val.labels) == len(plain.val)


def test_the_palette_is_of_the_training_images_alone(image_folder: Callable[..., Path]) -> None:
    root = image_folder({"train/a": 1, "test/a": 50})
    data = load(root, colors=16)
    own = {tuple(pixel) for row in read_picture(root / "train/a/000.png", 4) for pixel in row}
    assert set(codec_of(data).palette) == own


def test_validation_images_by_fraction(image_folder: Callable[..., Path]) -> None:
    data = load(image_folder({"a": 8, "b": 4}), val_fraction=0.25)
    assert labels_of(data.train) == [0] * 6 + [1] * 3
    assert labels_of(data.val) == [0, 0, 1]


def test_everything_is_encoded_once(root: Path, cache: Path) -> None:
    first = load(root)
    (tokens,) = cache.rglob("tokens.bin")
    os.utime(tokens, ns=(0, 0))
    moved = root.rename(root.with_name("moved"))
    again = load(moved, flip=True, class_conditional=True)
    assert tokens.stat().st_mtime_ns == 0
    assert list(cache.rglob("tokens.bin")) == [tokens]
    assert codec_of(again).palette == codec_of(first).palette
    assert sorted(path.name for path in tokens.parent.iterdir()) == [
        "labels.bin",
        "meta.json",
        "tokens.bin",
    ]
    for options in ({"size": 3}, {"colors": 7}, {"colors": "rgb"}, {"seed": 1}):
        load(moved, **options)
    assert len(list(cache.rglob("tokens.bin"))) == 5


@pytest.mark.parametrize("name", ["tokens.bin", "labels.bin", "meta.json"])
@pytest.mark.parametrize("harm", ["remove", "cut", "garble", "empty"])
def test_a_damaged_cache_is_rebuilt(root: Path, cache: Path, name: str, harm: str) -> None:
    before = all_of(load(root).train)[1]
    (file,) = cache.rglob(name)
    whole = file.read_bytes()
    if harm == "remove":
        file.unlink()
    elif harm == "garble":
        file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    else:
        file.write_bytes(whole[: 5 if harm == "cut" else 0])
    assert torch.equal(all_of(load(root).train)[1], before)
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("palette", [[0, 0, 0]]),
        ("palette", []),
        ("palette", [[300, 0, 0]] * 8),
        ("train", 7),
        ("train", "8"),
        ("train", 10**30),
        ("val", -3),
        ("sha256", {}),
        ("seal", ""),
        ("more", 1),
    ],
)
@pytest.mark.parametrize("sealed", [False, True])
def test_a_cache_that_lies_is_rebuilt(
    root: Path, cache: Path, key: str, value: object, sealed: bool
) -> None:
    before = all_of(load(root).train)[1]
    (meta,) = cache.rglob("meta.json")
    whole = meta.read_bytes()
    lie = json.loads(whole) | {key: value}
    if sealed and key != "seal":
        del lie["seal"]
        plain = json.dumps(lie, separators=(",", ":"))
        lie["seal"] = hashlib.sha256(plain.encode()).hexdigest()
    meta.write_text(json.dumps(lie, separators=(",", ":")))
    assert torch.equal(all_of(load(root).train)[1], before)
    assert meta.read_bytes() == whole


def test_nothing_is_left_of_images_that_cannot_be_read(root: Path, cache: Path) -> None:
    (root / "test/dog/000.png").write_text("no image")
    with pytest.raises(DataError, match="1 of 11 images cannot be read"):
        load(root)
    assert not [file for file in cache.rglob("*") if file.is_file()]


def test_a_cache_that_cannot_be_written_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = root / "train/cat/000.png"
    monkeypatch.setenv("GPTKIT_CACHE", str(file / "cache"))  # below a file: not even root can
    with pytest.raises(DataError, match="the cache cannot be written") as caught:
        load(root)
    assert str(caught.value).startswith(str(file / "cache"))
    assert "GPTKIT_CACHE" in str(caught.value.hint)


class Noise:
    """Chunks of random pixels, made without memory of their own."""

    classes = ("noise",)

    def __init__(self, chunks: int) -> None:
        self.count = chunks
        self.sha256 = self.key = f"noise {chunks}"

    def chunks(self, size: int) -> Iterator[Chunk]:
        random = np.random.default_rng(0)
        for number in range(self.count):
            pixels = random.integers(256, size=(1000, size, size, 3), dtype=np.uint8)
            yield Chunk(pixels, np.zeros(1000, np.int64), training=number + 1 < self.count)


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    peaks = []
    for chunks in (10, 40):
        tracemalloc.start()
        try:
            encoded(Noise(chunks), size=8, colors=16, seed=0)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + (1 << 20)  # the pixels alone are 6 MB more
    assert peaks[1] < 64 << 20


@pytest.mark.parametrize(
    "options",
    [
        {"source": "cifar100"},
        {"size": 0},
        {"size": -8},
        {"size": 8.5},
        {"size": "large"},
        {"colors": 1},
        {"colors": 4097},
        {"colors": "RGB"},
        {"val_fraction": 0.0},
        {"val_fraction": 1.0},
        {"seed": -1},
        {"path": "~nobody-of-this-name/images"},
        {"pth": "images"},
    ],
    ids=str,
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Cifar10.model_validate(options)


def test_path_is_made_absolute_and_takes_the_place_of_source(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    dataset = Cifar10(path=Path("images"), size=4, colors=8)
    assert dataset.path == root
    monkeypatch.chdir("/")
    assert len(dataset.load().train) == 8


def test_shapes_by_default() -> None:
    data = Cifar10(source="shapes", size=8, colors=16).load()
    assert (len(data.train), len(data.val)) == (shapes.TRAIN, shapes.VAL) == (6000, 600)
    assert (data.vocab_size, data.block_size) == (17, 64)
    assert data.classes == tuple(shapes.SHAPES)
    assert labels_of(data.val) == [*range(10)] * 60


@pytest.mark.skipif("GPTKIT_TEST_DATA" not in os.environ, reason="needs cifar10_jpeg_24k.zip")
def test_real_images(tmp_path: Path) -> None:
    with zipfile.ZipFile(Path(os.environ["GPTKIT_TEST_DATA"]) / "cifar10_jpeg_24k.zip") as file:
        wanted = [name for name in file.namelist() if int(Path(name).stem) < 20]
        file.extractall(tmp_path, wanted)
    root = tmp_path / "cifar10"
    data = check_dataset(Cifar10(path=root, size=16), prompts=[str(root / "test/cat/0000.jpg")])
    codec = codec_of(data)
    assert (len(data.train), len(data.val), data.vocab_size) == (200, 200, 513)
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    _, y = all_of(data.val)
    shown = np.stack([codec.decode_array(row.tolist()) for row in y])
    real = np.stack([read_picture(path, 16) for path in sorted((root / "test").rglob("*.jpg"))])
    error = ((shown.astype(float) - real) ** 2).mean()
    assert error < 60  # of 255 squared: 512 colours look right
