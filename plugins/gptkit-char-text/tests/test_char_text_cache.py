import json
import os
import tracemalloc
from pathlib import Path

import pytest
import torch

from gptkit.plugin import DataError
from gptkit_char_text import text, tokens
from gptkit_char_text.dataset import CharText

ALPHABET = "abcdefghij" * 20


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "my.txt").write_text(ALPHABET)
    return tmp_path / "my.txt"


def encoded(cache: Path) -> Path:
    (found,) = cache.rglob("tokens.bin")
    return found


def test_the_same_text_is_encoded_once_whatever_its_path_and_options(
    tmp_path: Path, path: Path, cache: Path
) -> None:
    CharText(path=path, block_size=4).load()
    os.utime(encoded(cache), ns=(0, 0))
    CharText(path=path.rename(tmp_path / "other.txt"), block_size=5, val_fraction=0.5).load()
    assert encoded(cache).stat().st_mtime_ns == 0


def test_another_text_is_encoded_anew(path: Path, cache: Path) -> None:
    CharText(path=path, block_size=4).load()
    path.write_text(ALPHABET[::-1])
    CharText(path=path, block_size=4).load()
    assert len(list(cache.rglob("tokens.bin"))) == 2


@pytest.mark.parametrize("name", ["tokens.bin", "meta.json"])
@pytest.mark.parametrize("harm", ["remove", "cut", "garble"])
def test_a_damaged_cache_is_rebuilt(path: Path, cache: Path, name: str, harm: str) -> None:
    CharText(path=path, block_size=4).load()
    whole = encoded(cache).read_bytes()
    file = encoded(cache).with_name(name)
    if harm == "remove":
        file.unlink()
    elif harm == "cut":
        os.truncate(file, 3)
    else:
        file.write_bytes(b"\xff{")
    data = CharText(path=path, block_size=4).load()
    assert encoded(cache).read_bytes() == whole
    assert data.train[torch.tensor([0])][0].tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(("place", "value"), [(0, 1), (0, 200), (50, 3), (-1, 0)])
def test_tokens_that_are_not_those_of_the_text_are_not_used(
    path: Path, cache: Path, place: int, value: int
) -> None:
    CharText(path=path, block_size=4).load()
    whole = encoded(cache).read_bytes()
    harmed = bytearray(whole)
    harmed[place] = value
    encoded(cache).write_bytes(harmed)
    CharText(path=path, block_size=4).load()
    assert encoded(cache).read_bytes() == whole


@pytest.mark.parametrize(
    "vocabulary", ["abcdefghik", "abcdefghi", "abcdefghijk", "bacdefghij", "", 7, None, ["a"]]
)
@pytest.mark.parametrize("text", [ALPHABET, ALPHABET.replace("j", "日")], ids=["ascii", "wide"])
def test_a_vocabulary_that_is_not_that_of_the_text_is_not_used(
    path: Path, cache: Path, text: str, vocabulary: object
) -> None:
    path.write_text(text)
    CharText(path=path, block_size=4).load()
    meta = encoded(cache).with_name("meta.json")
    whole = meta.read_bytes()
    meta.write_text(json.dumps(json.loads(whole) | {"vocabulary": vocabulary}))
    data = CharText(path=path, block_size=4).load()
    assert meta.read_bytes() == whole
    assert data.codec.model_dump() == {"vocabulary": "".join(sorted(set(text)))}


@pytest.mark.parametrize("text", [ALPHABET, "日本語x" * 50, "".join(map(chr, range(300))) * 2])
def test_a_good_cache_is_used(path: Path, cache: Path, text: str) -> None:
    path.write_bytes(text.encode())
    CharText(path=path, block_size=4).load()
    os.utime(encoded(cache), ns=(0, 0))
    CharText(path=path, block_size=4).load()
    assert encoded(cache).stat().st_mtime_ns == 0


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTKIT_CACHE", str(path / "cache"))  # below a file: not even root can
    for dataset in (CharText(path=path, block_size=4), CharText(source="tinyshakespeare")):
        with pytest.raises(DataError, match="the cache cannot be written") as caught:
            dataset.load()
        assert str(caught.value).startswith(str(path / "cache"))
        assert "GPTKIT_CACHE" in str(caught.value.hint)
        assert caught.value.exit_code == 1  # the data is right


def test_a_text_that_changes_after_it_was_scanned_leaves_nothing(path: Path, cache: Path) -> None:
    stats = text.scan([path])
    path.write_text(ALPHABET.upper())
    with pytest.raises(DataError, match=r"my\.txt: the text changed while it was read"):
        tokens.encode([path], stats)
    assert not list(cache.rglob("tokens.bin"))


def test_memory_does_not_grow_with_the_text(path: Path, cache: Path) -> None:
    with path.open("w") as file:
        for _ in range(64):
            file.write("abcdefg\n" * (1 << 17))
    tracemalloc.start()
    try:
        CharText(path=path).load()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert encoded(cache).stat().st_size == 64 << 20
    assert peak < 32 << 20
