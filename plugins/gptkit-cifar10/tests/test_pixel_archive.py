import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptkit.plugin import DataError, DownloadError
from gptkit_cifar10.archive import CLASSES, RECORD, SHA256, Archive
from gptkit_cifar10.dataset import Cifar10
from gptkit_cifar10.tokens import encoded

FOLDER = "cifar-10-batches-bin"
NAMES = [f"{FOLDER}/data_batch_{number}.bin" for number in (4, 1, 2, 3, 5)]
NAMES.insert(2, f"{FOLDER}/test_batch.bin")  # in no order, as in the real one


def records(seed: int, count: int = 3) -> bytes:
    contents = np.random.default_rng(seed).integers(256, size=(count, RECORD), dtype=np.uint8)
    contents[:, 0] %= 10
    return contents.tobytes()


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., Path]:
    """Writes an archive of six small batches; a keyword replaces or adds members."""

    def write(**changes: bytes | tarfile.TarInfo | None) -> Path:
        members: dict[str, bytes | tarfile.TarInfo | None] = {
            name: records(seed) for seed, name in enumerate(NAMES)
        }
        members |= {f"{FOLDER}/readme.html": b"hello"} | changes
        path = tmp_path / "archive.tar.gz"
        with tarfile.open(path, "w:gz") as file:
            for name, contents in members.items():
                if isinstance(contents, tarfile.TarInfo):
                    file.addfile(contents)
                elif contents is not None:
                    info = tarfile.TarInfo(name)
                    info.size = len(contents)
                    file.addfile(info, io.BytesIO(contents))
        return path

    return write


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def test_batches_come_in_their_order_whatever_that_of_the_archive(
    archive: Callable[..., Path],
) -> None:
    chunks = list(Archive(archive()).chunks(32))
    assert [chunk.training for chunk in chunks] == [True] * 5 + [False]
    for chunk, name in zip(chunks, [*sorted(set(NAMES) - {NAMES[2]}), NAMES[2]], strict=True):
        raw = np.frombuffer(records(NAMES.index(name)), np.uint8).reshape(3, RECORD)
        assert chunk.labels.tolist() == raw[:, 0].tolist()
        red, green, blue = (chunk.pixels[..., channel].reshape(3, -1) for channel in range(3))
        assert np.array_equal(np.concatenate([red, green, blue], axis=1), raw[:, 1:])


def test_images_are_reduced(archive: Callable[..., Path]) -> None:
    path = archive()
    whole, small = (np.concatenate([c.pixels for c in Archive(path).chunks(s)]) for s in (32, 8))
    means = whole.reshape(-1, 8, 4, 8, 4, 3).mean((2, 4))
    assert np.abs(small - means).max() <= 1


def test_an_archive_is_encoded(archive: Callable[..., Path]) -> None:
    path = archive()
    source = Archive(path)
    found = encoded(source, size=32, colors="rgb", seed=0)
    assert (found.train, found.val, found.palette) == (15, 3, ())
    pixels = np.concatenate([chunk.pixels.ravel() for chunk in source.chunks(32)])
    assert np.array_equal(np.fromfile(found.tokens, np.uint16), pixels)
    assert found.labels().tolist() == [label for c in source.chunks(32) for label in c.labels]
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.classes == CLASSES


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"../../etc/evil": b"x"}, "unexpected member '../../etc/evil'"),
        ({f"{FOLDER}/../../evil": b"x"}, "unexpected member"),
        ({"/etc/evil": b"x"}, "unexpected member '/etc/evil'"),
        ({"a": link(f"{FOLDER}/data_batch_1.bin", tarfile.SYMTYPE)}, "unexpected member"),
        ({"a": link("hard", tarfile.LNKTYPE)}, "unexpected member 'hard'"),
        ({"a": link("device", tarfile.CHRTYPE)}, "unexpected member 'device'"),
        ({NAMES[0]: None}, f"{NAMES[0]} is missing"),
        ({NAMES[2]: None}, f"{NAMES[2]} is missing"),
        ({NAMES[1]: b""}, "not made of records of 3,073 bytes"),
        ({NAMES[1]: records(0)[:-1]}, "not made of records of 3,073 bytes"),
        ({NAMES[3]: b"\x0a" + bytes(RECORD - 1)}, "has the label 10; the largest is 9"),
    ],
)
def test_an_archive_that_is_not_what_it_should_be(
    archive: Callable[..., Path],
    tmp_path: Path,
    cache: Path,
    changes: dict[str, bytes | tarfile.TarInfo | None],
    fault: str,
) -> None:
    path = archive(**changes)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(DataError) as caught:
        encoded(Archive(path), size=8, colors=4, seed=0)
    assert str(caught.value).startswith(f"{path}: not the binary archive of CIFAR-10, or damaged")
    assert fault in str(caught.value)
    assert "path = FOLDER" in str(caught.value.hint)
    assert set(tmp_path.rglob("*")) - before <= {cache, cache / "cifar10"}


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_archive(archive: Callable[..., Path], cache: Path, share: float) -> None:
    path = archive()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match="or damaged"):
        encoded(Archive(path), size=8, colors=4, seed=0)
    assert not [file for file in cache.rglob("*") if file.is_file()]


def test_a_damaged_archive(archive: Callable[..., Path]) -> None:
    path = archive()
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(DataError, match="or damaged"):
        for chunk in Archive(path).chunks(32):
            assert chunk.pixels.size


def test_no_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        list(Archive(tmp_path / "none.tar.gz").chunks(8))


def test_offline_says_what_else_to_do(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"cifar-10-binary\.tar\.gz: cannot be dow") as caught:
        Cifar10().load()
    assert "path = FOLDER in [dataset]" in str(caught.value.hint)
    assert not list((cache / "cifar10").iterdir())
    assert Archive().sha256 == SHA256


def test_encoded_images_need_no_archive(
    archive: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the tokens are in the cache, the download may be deleted."""
    path = archive()
    monkeypatch.setattr("gptkit_cifar10.archive.fetch", lambda *_, **__: path)
    data = Cifar10(size=8, colors=4).load()
    path.unlink()
    again = Cifar10(size=8, colors=4).load()
    assert (again.codec, again.sha256) == (data.codec, SHA256)
    assert (len(data.train), len(data.val), data.block_size) == (15, 3, 64)
    assert data.classes == CLASSES
