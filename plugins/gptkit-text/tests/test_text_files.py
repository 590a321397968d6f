"""What a path means, and the digest of a text's files."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gptkit.plugin import DataError
from gptkit_text import files
from gptkit_text.files import TextFile, digest_all, expand, file_digest, find

Said = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    return tmp_path / "corpus"


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_braces_stand_for_numbers_as_in_a_shell() -> None:
    assert expand("a.txt") == ["a.txt"]
    assert expand("{8..11}") == ["8", "9", "10", "11"]
    assert expand("s-{008..010}.gz") == ["s-008.gz", "s-009.gz", "s-010.gz"]
    assert expand("{08..100}")[::92] == ["008", "100"]
    assert expand("https://a/{0..1}/{a}/{1..2}") == [
        f"https://a/{i}/{{a}}/{j}" for i in (0, 1) for j in (1, 2)
    ]


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("{5..1}", "counts down"),
        ("a{0..99999999999999}", "more than 1,048,576"),
        ("{0..9999}{0..9999}", "more than 1,048,576"),
    ],
)
def test_braces_that_stand_for_nothing_or_too_much(path: str, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        expand(path)


def test_a_name_says_what_a_file_holds(folder: Path) -> None:
    expected = {
        "a.txt": ("text", None),
        "b.MD.xz": ("text", "xz"),
        "c.jsonl.zst": ("jsonl", "zst"),
        "d.v2.json.gz": ("json", "gz"),
        "e/f.csv.bz2": ("csv", "bz2"),
        "g.Parquet": ("parquet", None),
    }
    found = find([write(folder, *expected)], text_key="body")
    assert {f.path.relative_to(folder).as_posix(): (f.kind, f.compression) for f in found} == (
        expected
    )
    assert {file.text_key for file in found} == {"body"}


def test_a_file_that_is_named_is_text_whatever_its_ending(folder: Path) -> None:
    write(folder, "README", "a.log.gz", ".hidden")
    kinds = [(f.kind, f.compression) for f in find([*folder.iterdir()])]
    assert sorted(kinds, key=str) == [("text", "gz"), ("text", None), ("text", None)]


def test_what_a_folder_leaves_out_is_counted(folder: Path, capsys: Said) -> None:
    write(folder, "a.txt", ".b.txt", ".git/c.txt", "d.pdf", "e.gz", "f.parquet.gz", "x.txt/g.md")
    (folder / "loop").symlink_to(folder)
    found = find([folder])
    assert [file.path.name for file in found] == ["a.txt", "g.md"]
    told = capsys.readouterr().err
    assert "2 hidden, 1 linked twice, 3 with other endings (.gz, .pdf): skipped" in told


def test_a_file_counts_once(folder: Path, capsys: Said) -> None:
    write(folder, "a.txt", "b.txt")
    (folder.parent / "link.txt").symlink_to(folder / "a.txt")
    found = find([folder.parent / "link.txt", folder, folder / "b.txt"])
    assert [file.path.name for file in found] == ["link.txt", "b.txt"]
    assert capsys.readouterr().err == f"note: {folder.parent}: 2 named twice: skipped\n"


def test_unknown_endings_are_told(folder: Path, capsys: Said) -> None:
    names = ["a.TSV", "b.log.gz", "c", "d.rs", "e.d.ts", "f.gz", "g.txt.gz", "h.md", "i.ndjson"]
    write(folder, *names)
    found = find([folder / name for name in names], endings=[".rs", ".d.ts"])
    assert [file.kind for file in found] == ["text"] * 8 + ["jsonl"]
    told = "2 with unknown endings (.log, .tsv): read as plain text"
    assert capsys.readouterr().err == f"note: {folder}: {told}\n"
    write(folder, *(others := [f"x.{i}" for i in range(6)]))
    find([folder / name for name in others])
    told = "6 with unknown endings (.0, .1, .2, .3, .4, ...): read as plain text"
    assert capsys.readouterr().err == f"note: {folder}: {told}\n"
    find([folder])
    assert "unknown endings" not in capsys.readouterr().err


def test_paths_that_name_no_text(folder: Path) -> None:
    write(folder, "a.parquet.gz", "no/b.pdf")
    os.mkfifo(folder / "pipe.txt")
    for path, fault in {
        folder / "none": "no such file or folder",
        folder / "a.parquet.gz" / "b": "no such file or folder",
        folder / "no": "no file in this folder ends in one of .txt, .md, .jsonl, .ndjson,",
        folder / "pipe.txt": "cannot be read: is a pipe, not a regular file",
        Path("/dev/zero"): "cannot be read: is a device, not a regular file",
        folder / "a.parquet.gz": "a Parquet file is read only as it is",
    }.items():
        with pytest.raises(DataError, match=f"^{re.escape(str(path))}: {fault}") as caught:
            find([path])
        assert caught.value.hint


def test_the_digest_is_that_of_all_that_decides_the_documents(folder: Path) -> None:
    one, two = find([write(folder, "one.txt", "two.txt")])
    digest = digest_all([one, two])
    one.path.rename(folder / "other.txt")
    assert digest_all([replace(one, path=folder / "other.txt"), two]) == digest
    (folder / "other.txt").rename(one.path)
    others = [
        digest_all([two, one]),
        digest_all([one]),
        digest_all([replace(one, kind="jsonl"), two]),
        digest_all([replace(one, compression="gz"), two]),
        digest_all([replace(one, text_key="body"), two]),
    ]
    two.path.write_text("TWO.txt")
    others.append(digest_all([one, two]))
    assert len({digest, *others}) == 1 + len(others)


@pytest.fixture
def large(folder: Path) -> Path:
    (folder / "large.txt").write_bytes(b"a" * files.WORTH_NOTING)
    return folder / "large.txt"


def test_a_digest_is_remembered_while_the_file_stays_as_it_is(
    large: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SETTLED", -files.SETTLED)  # as if the file were older
    first = file_digest(large)
    (memory,) = (cache / "text/digests").iterdir()
    memory.write_text(json.dumps(json.loads(memory.read_text()) | {"sha256": "remembered"}))
    assert file_digest(large) == "remembered"
    times = large.stat()
    large.write_bytes(b"b" + b"a" * (files.WORTH_NOTING - 1))
    os.utime(large, ns=(times.st_atime_ns, times.st_mtime_ns))  # as `cp -p` and rsync do
    assert file_digest(large) not in ("remembered", first)
    for damage in (b"", b"{", b"[]", b'{"sha256": 7}', b"\xff"):
        memory.write_bytes(damage)
        assert file_digest(large) not in ("remembered", first)


def test_the_digest_of_a_file_that_has_just_changed_is_not_remembered(
    large: Path, cache: Path
) -> None:
    file_digest(large)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_no_fault(
    large: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SETTLED", -files.SETTLED)
    cache.write_text("a file")
    assert file_digest(large) == file_digest(large)


def test_a_file_that_is_gone(folder: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.txt: no such file"):
        digest_all([TextFile(folder / "gone.txt", "text")])
