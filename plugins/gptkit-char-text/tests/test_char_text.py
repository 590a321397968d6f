import hashlib
import os
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from gptkit.plugin import Data, DataError, DownloadError, Split
from gptkit_char_text.dataset import CharText, train_length

ALPHABET = "abcdefghij" * 20


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def load(path: Path, **options: float) -> Data:
    return CharText.model_validate({"path": path, "block_size": 4} | options).load()


def text_of(data: Data, split: Split) -> str:
    """The split's text, put together from all its windows."""
    x, y = split[torch.arange(len(split))]
    return data.codec.decode([*x[:, 0].tolist(), *y[-1].tolist()]).decode()


def test_sonnets() -> None:
    data = CharText().load()
    assert (data.vocab_size, data.block_size) == (59, 128)
    assert text_of(data, data.train).startswith("From fairest creatures we desire increase,\n")
    assert text_of(data, data.val).endswith("Love's fire heats water, water cools not love.\n")


def test_windows_are_int64_and_targets_are_one_ahead(tmp_path: Path) -> None:
    data = load(write(tmp_path / "my.txt", ALPHABET))
    x, y = data.train[torch.tensor([0, 7, len(data.train) - 1])]
    assert x.dtype == y.dtype == torch.int64
    assert x.tolist()[:2] == [[0, 1, 2, 3], [7, 8, 9, 0]]
    assert y.tolist()[:2] == [[1, 2, 3, 4], [8, 9, 0, 1]]
    assert x.shape == y.shape == (3, 4)
    assert data.train.stride == 4


def test_splits_share_no_character(tmp_path: Path) -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 200)))
    data = load(write(tmp_path / "my.txt", text), val_fraction=0.25)
    assert text_of(data, data.train) == text[:150]
    assert text_of(data, data.val) == text[150:]


def test_split_arithmetic_is_decimal() -> None:
    assert train_length(1_115_394, 0.1) == 1_003_854
    assert train_length(10, 0.9) == 1  # in floats 10 * (1 - 0.9) is 0.99...
    assert train_length(1000, 1e-05) == 999


@pytest.mark.skipif("GPTKIT_TEST_DATA" not in os.environ, reason="needs tinyshakespeare.txt")
def test_tiny_shakespeare_splits_as_in_nanogpt() -> None:
    path = Path(os.environ["GPTKIT_TEST_DATA"]) / "tinyshakespeare.txt"
    data = load(path, block_size=256)
    assert data.vocab_size == 65
    assert (len(data.train), len(data.val)) == (1_003_854 - 256, 111_540 - 256)


def test_up_to_256_characters_take_one_byte(tmp_path: Path, cache: Path) -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 256)))
    data = load(write(tmp_path / "my.txt", text))
    assert text_of(data, data.train) + text_of(data, data.val) == text
    assert [file.stat().st_size for file in cache.rglob("tokens.bin")] == [256]


def test_more_than_256_characters_take_two_bytes(tmp_path: Path, cache: Path) -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 300))) * 2
    data = load(write(tmp_path / "my.txt", text))
    assert data.vocab_size == 300
    assert text_of(data, data.train) + text_of(data, data.val) == text
    assert [file.stat().st_size for file in cache.rglob("tokens.bin")] == [1200]


def test_any_script_survives_the_borders_of_chunks(tmp_path: Path) -> None:
    text = "я🐍x" * 200_000  # 1.4 MB, 7 bytes at a time: the border at 1 MiB cuts a character
    data = load(write(tmp_path / "my.txt", text))
    assert data.codec.model_dump() == {"vocabulary": "xя🐍"}
    assert text_of(data, data.train) + text_of(data, data.val) == text


def test_a_byte_order_mark_is_no_text_and_line_ends_stay(tmp_path: Path) -> None:
    plain = load(write(tmp_path / "plain.txt", "a\r\nb" * 20))
    marked = load(write(tmp_path / "marked.txt", "\ufeff" + "a\r\nb" * 20))
    assert marked.sha256 == plain.sha256 == hashlib.sha256(b"a\r\nb" * 20).hexdigest()
    assert marked.vocab_size == 4


def test_a_folder_is_its_text_files_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write(folder / "b.txt", "two " * 5)
    write(folder / "a/z.txt", "\ufeff" + "one " * 5)
    write(folder / "c/c.txt", "three " * 5)
    write(folder / "notes.md", "unread")
    data = load(folder, val_fraction=0.3)
    whole = "\n".join(["one " * 5, "two " * 5, "three " * 5])
    assert text_of(data, data.train) + text_of(data, data.val) == whole
    assert data.sha256 == hashlib.sha256(whole.encode()).hexdigest()


def test_a_folder_is_what_one_sees_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    write(folder / "a.txt", "one " * 20)
    write(folder / "B.TXT", "two " * 20)
    write(folder / ".ipynb_checkpoints/a-checkpoint.txt", "hidden " * 20)
    write(tmp_path / "real/c.txt", "three " * 20)
    (folder / "sub").symlink_to("../real")
    (folder / "loop").symlink_to(".")
    data = load(folder, val_fraction=0.3)
    whole = "\n".join(["two " * 20, "one " * 20, "three " * 20])
    assert text_of(data, data.train) + text_of(data, data.val) == whole
    assert capsys.readouterr().err == f"note: {folder}: 1 hidden, 1 linked twice: skipped\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_what_is_there_but_no_file_is_named_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read, write = os.pipe()
    for path, fault in {
        str(tmp_path / "pipe"): "is a pipe, not a regular file",
        f"/dev/fd/{read}": "is a pipe, not a regular file",
        "/dev/null": "is a device, not a regular file",
        "/dev/zero": "is a device, not a regular file",
    }.items():
        with pytest.raises(DataError) as caught:
            load(Path(path))
        assert str(caught.value) == f"{path}: cannot be read: {fault}"
    os.close(read)
    os.close(write)
    with pytest.raises(DataError, match="/proc: is made up by the system"):
        load(Path("/proc"))


def test_path_is_made_absolute_and_takes_the_place_of_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "my.txt", ALPHABET)
    monkeypatch.chdir(tmp_path)
    dataset = CharText(source="sonnets", path=Path("my.txt"), block_size=4)
    assert dataset.path == tmp_path / "my.txt"
    monkeypatch.chdir("/")
    assert dataset.load().vocab_size == 10


@pytest.mark.parametrize(
    "options",
    [
        {"source": "hamlet"},
        {"block_size": 0},
        {"val_fraction": 0.0},
        {"val_fraction": 1.0},
        {"path": "~nobody-of-this-name/my.txt"},
        {"pth": "my.txt"},
    ],
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CharText.model_validate(options)


@pytest.mark.parametrize(
    ("text", "fault", "advice"),
    [
        ("", "the text is empty", "path"),
        ("aaaaaaaa", "only one character, 'a', repeated", "two different"),
        ("abcdefghij", "9 characters for training and 1 for val", "use more text"),
        (
            "abcdefghij" * 4,
            "36 characters for training and 4 for val",
            "to 3 or less",
        ),
    ],
)
def test_unusable_text(tmp_path: Path, text: str, fault: str, advice: str) -> None:
    path = write(tmp_path / "my.txt", text)
    with pytest.raises(DataError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert fault in str(caught.value)
    assert advice in str(caught.value.hint)


def test_the_largest_block_size_that_the_error_names_works(tmp_path: Path) -> None:
    path = write(tmp_path / "my.txt", "abcdefghij" * 4)
    assert len(load(path, block_size=3).val) == 1


def test_too_many_different_characters(tmp_path: Path) -> None:
    text = "".join(map(chr, range(0x10000, 0x20001)))
    with pytest.raises(DataError, match=r"65,537 different characters; at most 65,536 are"):
        load(write(tmp_path / "my.txt", text))
    assert load(write(tmp_path / "my.txt", text[1:])).vocab_size == 65_536


@pytest.mark.parametrize(
    ("contents", "byte", "offset"),
    [
        (b"abc\xffdef", "0xff", 3),
        (b"\xef\xbb\xbfabc\xff", "0xff", 6),
        (b"abc\xd1", "0xd1", 3),
        (b"x" * ((1 << 20) - 1) + b"\xe2\x82A", "0xe2", (1 << 20) - 1),
    ],
)
def test_a_byte_that_is_not_utf8(tmp_path: Path, contents: bytes, byte: str, offset: int) -> None:
    path = tmp_path / "my.txt"
    path.write_bytes(contents)
    with pytest.raises(DataError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: not UTF-8: bad byte {byte} at offset {offset}"


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load(tmp_path / "absent.txt")


def test_folder_without_text(tmp_path: Path) -> None:
    write(tmp_path / "folder/notes.md", ALPHABET)
    with pytest.raises(DataError, match=r"no file in this folder ends in \.txt"):
        load(tmp_path / "folder")


def test_a_file_in_utf_16_is_told(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_bytes(ALPHABET.encode("utf-16"))
    with pytest.raises(DataError, match="bad byte 0xff at offset 0") as caught:
        load(tmp_path / "my.txt")
    assert caught.value.hint == "save the text as UTF-8; it seems to be UTF-16"


def test_zero_bytes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.txt").write_bytes(ALPHABET.encode("utf-16-le"))
    load(tmp_path / "my.txt")
    assert "my.txt: has U+0000, which no text has" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "my.txt"
    path.symlink_to("/proc/self/mem")  # opens, but reading its first bytes is an I/O error
    with pytest.raises(DataError, match=r"my\.txt: cannot be read: Input/output error"):
        load(path)


def test_tiny_shakespeare_offline_says_what_else_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(DownloadError) as caught:
        CharText(source="tinyshakespeare").load()
    assert 'path = "my.txt"' in str(caught.value.hint)
