"""Documents of every kind of file, and every fault that a file may have."""

import bz2
import csv
import gzip
import json
import lzma
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from gptkit.plugin import DataError
from gptkit_text import documents, parquet
from gptkit_text.documents import PART, Part, Reader
from gptkit_text.files import find

Said = pytest.CaptureFixture[str]

TEXTS = ["one\n", "zwei\r\n\U0001f600", "  trois\n\nfin ", 'say "x", y', "n\u200bl"]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


def jsonl(rows: Iterable[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def rows_of(texts: Iterable[str | None]) -> list[dict[str, str | None]]:
    return [{"id": "x", "text": text} for text in texts]


def write(path: Path, contents: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    return path


def read(*paths: Path, errors: Any = "strict", text_key: str = "text") -> list[str]:
    """The documents, put together from their parts; `advance` is told of every byte."""
    reader = Reader(find(paths, text_key=text_key), errors=errors)
    done, found = [], list[str]()
    for part in reader.parts(done.append):
        if part.first:
            found.append("")
        found[-1] += part.text
    assert sum(done) == reader.total
    assert reader.documents == len(found)
    return found


def fault(path: Path, *, text_key: str = "text") -> str:
    """The error without the path, and that it has a hint."""
    with pytest.raises(DataError) as caught:
        read(path, text_key=text_key)
    assert caught.value.hint
    return str(caught.value).removeprefix(f"{path}: ")


def write_csv(path: Path, texts: Iterable[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(("x", text) for text in texts)
    return path


# What is read


def test_a_text_file_is_one_document_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "\ufeffone\r\ntwo \n")
    write(tmp_path / "a/c.md", "# three\n")
    assert read(tmp_path) == ["# three\n", "one\r\ntwo \n"]


def test_rows_of_every_kind(tmp_path: Path) -> None:
    rows = rows_of(TEXTS)
    write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + jsonl(rows).replace(b"\n", b"\n\n \n"))
    write(tmp_path / "b.json", json.dumps(rows, indent=2))
    write(tmp_path / "c.json", json.dumps(rows))
    write(tmp_path / "d.json", b"\n" + jsonl(rows))
    write(tmp_path / "e.json", json.dumps(TEXTS))
    write_csv(tmp_path / "f.csv", TEXTS[:4])
    for path in sorted(tmp_path.iterdir()):
        assert read(path) == TEXTS[: 4 if path.suffix == ".csv" else 5], path.name
    write(tmp_path / "g.json", json.dumps(rows[1], indent=2))
    write(tmp_path / "h.json", json.dumps(rows[1]))
    assert read(tmp_path / "g.json", tmp_path / "h.json") == [TEXTS[1], TEXTS[1]]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_parquet_columns_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    texts = [*TEXTS, None, "last"]
    values = [text.encode() if text and pa.types.is_binary(kind) else text for text in texts]
    plain = pa.array(values, pa.string() if pa.types.is_dictionary(kind) else kind)
    table = pa.table({"text.body": plain.cast(kind), "n": range(7)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    assert read(tmp_path / "a.parquet", text_key="text.body") == [*TEXTS, "last"]


@pytest.mark.parametrize(
    "options",
    [{}, {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}],
    ids=["dictionary", "delta"],
)
def test_parquet_values_that_are_stored_once_do_not_fill_the_memory(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    texts = [f"{i}" * 50_000 for i in range(4)]
    table = pa.table({"text": [texts[i // 1000] for i in range(4000)]})  # 200 MB
    pq.write_table(table, tmp_path / "a.parquet", **options)
    del table
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    before, held = pa.total_allocated_bytes(), list[int]()
    for part in Reader(find([tmp_path / "a.parquet"])).parts():
        assert part.text == texts[len(held) // 1000]
        held.append(pa.total_allocated_bytes() - before)
    assert len(held) == 4000
    assert max(held) < 80_000_000


def test_parquet_rows_without_a_text_do_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "MOST_ROWS", 100)
    pq.write_table(pa.table({"text": pa.nulls(999, pa.string())}), tmp_path / "a.parquet")
    file = pq.ParquetFile(tmp_path / "a.parquet")
    sizes = [len(batch) for batch in parquet._batches(file, "text")]
    assert sizes == [100] * 9 + [99]


def test_the_king_james_text(king_james_file: Path, king_james: list[str], tmp_path: Path) -> None:
    path = king_james_file
    assert len(king_james) == 31_103
    assert read(path) == [verse for verse in king_james if verse.strip()]
    pq.write_table(pa.table({"text": king_james}), tmp_path / "kjv.parquet")
    write(tmp_path / "kjv.jsonl.zst", COMPRESS["zst"](path.read_bytes()))
    write_csv(tmp_path / "kjv.csv", king_james)
    assert read(tmp_path / "kjv.parquet") == read(path)
    assert read(tmp_path / "kjv.jsonl.zst") == read(path)
    assert read(tmp_path / "kjv.csv") == read(path)


@pytest.mark.parametrize("ending", COMPRESS)
def test_all_members_of_a_compressed_file_are_read(tmp_path: Path, ending: str) -> None:
    compress = COMPRESS[ending]
    parts = [jsonl(rows_of([f"{i}" * 5000])) for i in range(5)]
    cut = [*parts[:3], parts[3][:100], parts[3][100:], parts[4]]
    padding = bytes(8) if ending in ("gz", "xz") else b""
    contents = b"".join(map(compress, cut[:2])) + padding + b"".join(map(compress, cut[2:]))
    write(tmp_path / f"a.jsonl.{ending}", contents + padding)
    assert read(tmp_path / f"a.jsonl.{ending}") == [f"{i}" * 5000 for i in range(5)]
    write(tmp_path / f"b.txt.{ending}", compress(b"one ") + compress(b"document"))
    assert read(tmp_path / f"b.txt.{ending}") == ["one document"]


def test_a_long_document_comes_in_parts_that_end_after_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PART", 10)
    text = "12345\n6789\n" + "x" * 25 + "\nyz"
    write(tmp_path / "a.txt", text)
    write(tmp_path / "b.jsonl", jsonl([text, "short"]))
    pieces = ["12345\n", "6789\n", "x" * 10, "x" * 10, "x" * 5 + "\nyz"]
    expected = [Part(piece, index == 0) for index, piece in enumerate(pieces)]
    reader = Reader(find([tmp_path]))
    assert list(reader.parts()) == [*expected, *expected, Part("short", True)]
    assert list(reader.parts()) == [*expected, *expected, Part("short", True)]
    assert reader.documents == 3


def test_parts_do_not_depend_on_how_a_text_is_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PART", 300_000)
    text = "".join(f"line {i} \u00e4\U0001f600\n" for i in range(50_000))
    write(tmp_path / "a.txt", text)
    plain = [part.text for part in Reader(find([tmp_path / "a.txt"])).parts()]
    assert "".join(plain) == text
    assert [part.endswith("\n") for part in plain] == [True, True, True]
    for ending, compress in COMPRESS.items():
        path = write(tmp_path / f"a.txt.{ending}", compress(text.encode()))
        assert [part.text for part in Reader(find([path])).parts()] == plain


def test_empty_documents_are_left_out_and_counted_once(tmp_path: Path, capsys: Said) -> None:
    write(tmp_path / "a.jsonl", jsonl(rows_of(["", "a", " \n\t", None, "b"])))
    write(tmp_path / "b.txt", " \n")
    write(tmp_path / "c.txt", "")
    write(tmp_path / "d.json", "")
    write(tmp_path / "e.csv", "text\n")
    reader = Reader(find([tmp_path]))
    assert [part.text for part in reader.parts()] == ["a", "b"]
    assert [part.text for part in reader.parts()] == ["a", "b"]
    assert reader.skipped["empty documents"] == 5
    told = "5 empty documents, 2 files without rows: skipped"
    assert capsys.readouterr().err == f"note: {tmp_path}: {told}\n"


def test_a_document_may_begin_with_much_white_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PART", 10)
    assert read(write(tmp_path / "a.txt", " " * 25 + "x")) == [" " * 5 + "x"]


# What is at fault


def test_a_key_that_is_missing_in_a_late_row(tmp_path: Path) -> None:
    rows: list[Any] = [*rows_of(["x"] * 31_043), {"id": 1, "body": "x"}]
    path = write(tmp_path / "a.jsonl", jsonl(rows))
    assert fault(path) == 'row 31,044: no key "text"; its keys are id, body'
    write(path, jsonl([{f"key {i}\n": 1 for i in range(12)}]))
    assert re.fullmatch(r"row 1: .* key 9. and 2 more", fault(path))
    write(path, "{}")
    assert fault(path) == 'row 1: no key "text"; it has no keys'


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (b'{"text": 7}', 'row 2: "text" is a number, not text'),
        (b'{"text": ["a"]}', 'row 2: "text" is a list, not text'),
        (b'{"text": true}', 'row 2: "text" is true or false, not text'),
        (b"null", "row 2: is null, not text"),
        (b"[1]", "row 2: is a list, not text"),
        (b'{"text": "a"', "row 2: not JSON: Expecting ',' delimiter at column 13"),
        (b"text", "row 2: not JSON: Expecting value at column 1"),
        (b"9" * 5000, "row 2: cannot be read as JSON: "),
        (b"[" * 100_000, "row 2: cannot be read as JSON: "),
        (b'{"text": "\\ud83d"}', "row 2: has half a character, the surrogate \\ud83d"),
        (b'{"text": "a\\u0000"}', "row 2: has a zero byte at character 2 of the text"),
        (b'{"text": "\xe9"}', "not UTF-8: bad byte 0xe9 at offset 27"),
        (b'{"text": "\0"}', "not a text: bad byte 0x00 at offset 27"),
    ],
)
def test_rows_of_jsonl_that_are_at_fault(tmp_path: Path, row: bytes, told: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "fine"}\n' + row + b"\n")
    assert fault(path).startswith(told)


@pytest.mark.parametrize(
    ("contents", "told"),
    [
        ('{\n "text": "a"\n', "not JSON: Expecting ',' delimiter at line 3, column 1"),
        ("7", "row 1: is a number, not text"),
        ('[\n "a",\n 7]', "row 2: is a number, not text"),
        ('[\n {"a": "b"}]', 'row 1: no key "text"; its keys are a'),
        ('{\n"data": []}', 'row 1: no key "text"; its keys are data'),
        ("plain text", "not JSON: Expecting value at column 1"),
    ],
)
def test_json_that_is_neither(tmp_path: Path, contents: str, told: str) -> None:
    assert fault(write(tmp_path / "a.json", contents)) == told


def test_csv_at_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for contents, told in {
        "id;text\n1;a\n": "its columns are separated by ';'",
        "id,words\n1,a\n": 'no column "text"; its columns are id, words',
        'id,text\n\n1,"a\nb"\n2\n': 'row 2 (line 5): ends before the column "text"',
        'id,text\n1,"a\n2,b\n': "line 2: not CSV: a quotation mark is not closed",
        'id,text\n\n1,"a\nb"\n\n2,"c\n3,d\n': "line 6: not CSV: a quotation mark is not closed",
        "id,text\r1,a\r": "line 1: not CSV: a line ends with a carriage return alone",
    }.items():
        assert fault(write(path, contents)).startswith(told)
    assert read(write(path, "text\n" + "x" * 200_000)) == ["x" * 200_000]


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.txt", b"\xef\xbb\xbf" + b"x" * 3_000_000 + "\u00e9".encode("latin-1")
    )
    assert fault(path) == "not UTF-8: bad byte 0xe9 at offset 3,000,003"
    assert read(path, errors="replace") == ["x" * 3_000_000 + "\ufffd"]
    write(path, "\u00e9".encode()[:1])
    assert fault(path) == "not UTF-8: bad byte 0xc3 at offset 0"
    write(tmp_path / "a.jsonl", b'{"text": "\xff\\ud83d\xf0\x9f\x98\x80\\ude00"}')
    assert read(tmp_path / "a.jsonl", errors="replace") == ["\ufffd\ufffd\U0001f600\ufffd"]
    write(tmp_path / "a.csv", b"text\n\xff\n")
    assert read(tmp_path / "a.csv", errors="replace") == ["\ufffd"]
    column = pa.array([b"fine", b"a\xff"], pa.binary())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert (
        fault(tmp_path / "a.parquet") == "row 2: not UTF-8: bad byte 0xff at offset 1 of the text"
    )
    assert read(tmp_path / "a.parquet", errors="replace") == ["fine", "a\ufffd"]


def test_a_stray_zero_byte_may_be_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"a text with a zero\0byte")
    with pytest.raises(DataError, match="not a text: bad byte 0x00 at offset 18") as caught:
        read(path)
    assert 'errors = "replace"' in str(caught.value.hint)
    assert read(path, errors="replace") == ["a text with a zero\ufffdbyte"]
    write(tmp_path / "a.jsonl", jsonl(["fine", "a\0"]) + b'"\\ud83d\\u0000"')
    pq.write_table(pa.table({"text": ["fine", "a\0", "\0\0"]}), tmp_path / "a.parquet")
    for path in tmp_path / "a.jsonl", tmp_path / "a.parquet":
        assert fault(path) == "row 2: has a zero byte at character 2 of the text"
        assert read(path, errors="replace") == ["fine", "a\ufffd", "\ufffd\ufffd"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf16_is_recognised(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "a.txt", "text\n".encode(encoding))
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.hint == "save the text as UTF-8; it seems to be UTF-16, or no text at all"


@pytest.mark.parametrize("ending", COMPRESS)
def test_compressed_files_at_fault(tmp_path: Path, ending: str) -> None:
    text = "".join(f"{i * i}\n" for i in range(20_000)).encode()
    whole = COMPRESS[ending](text)
    path = tmp_path / f"a.txt.{ending}"
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        assert fault(write(path, whole[:size])) == "truncated: the file ends before its data does"
    write(path, whole + whole[: len(whole) // 2])
    assert fault(path) == "truncated: the file ends before its data does"
    damaged = f"damaged: cannot be decompressed as .{ending}: "
    assert fault(write(path, text)).startswith(damaged)
    assert fault(write(path, whole + b"rest")).startswith(damaged)


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz"])  # .zst need not have a checksum
def test_a_flipped_bit_is_found(tmp_path: Path, ending: str) -> None:
    whole = bytearray(COMPRESS[ending](b"".join(b"%d\n" % i**2 for i in range(20_000))))
    whole[len(whole) // 2] ^= 1
    told = fault(write(tmp_path / f"a.txt.{ending}", bytes(whole)))
    assert told.startswith(("damaged: ", "truncated: "))


def test_parquet_at_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"id": [1, 2], "body": ["a" * 999, "b"], "tags": [["x"], []]})
    pq.write_table(table, path, use_dictionary=False, compression="none")
    assert fault(path) == 'no column "text"; its columns are id, body, tags'
    assert fault(path, text_key="id") == 'the column "id" has no text, but int64'
    assert fault(path, text_key="tags").startswith('the column "tags" has no text, but list<')
    whole = path.read_bytes()
    for contents in (b"", b"text", whole[:-5], whole[100:]):
        assert fault(write(path, contents), text_key="body").startswith("cannot be read as Parquet")


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("a.txt.zst", "zstandard", "zst"), ("a.parquet", "pyarrow", "parquet")],
)
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=f"needs the package {package}") as caught:
        read(write(tmp_path / name, "x"))
    assert caught.value.hint == f'pip install "gptkit-text[{extra}]"'


def test_a_row_that_is_too_long_to_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptkit_text.rows.MOST_ROW", 1000)
    path = write(tmp_path / "a.jsonl", jsonl(["x" * 900, "x" * 1000]))
    assert fault(path) == "line 2: is longer than 1,000 bytes"
    write(tmp_path / "a.csv", 'text\nx\n"' + "y\n" * 126 + '"\n')
    assert fault(tmp_path / "a.csv") == "line 3: not CSV: a field is longer than 250 characters"
    write(tmp_path / "a.json", json.dumps(["x" * 90] * 20, indent=1))
    assert fault(tmp_path / "a.json").startswith("is longer than 1,000 bytes")
    monkeypatch.setattr(parquet, "MOST_ROW", 1000)
    table = pa.table({"text": ["x" * 1000, "x" * 1001]})
    for use_dictionary in (True, False):
        pq.write_table(table, tmp_path / "a.parquet", use_dictionary=use_dictionary)
        assert fault(tmp_path / "a.parquet") == "row 2: is longer than 1,000 bytes"


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    reader = Reader(find([write(tmp_path / "a.txt", "x")]))
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"a\.txt: no such file"):
        list(reader.parts())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Files of 64 MB and more, which hold one line, many lines or many rows."""
    line = ("word " * 199 + "end.\n").encode()
    text = line * 65_000
    write(tmp_path / "lines.txt", text)
    write(tmp_path / "one-line.txt", text.replace(b"\n", b" "))
    write(tmp_path / "a.txt.zst", COMPRESS["zst"](text))
    write(tmp_path / "a.txt.bz2", COMPRESS["bz2"](bytes(1 << 26).replace(b"\0", b"x")))
    write(tmp_path / "a.txt.gz", gzip.compress(text, 1))
    write(tmp_path / "a.jsonl", jsonl(rows_of([line.decode()])) * 65_000)
    write(tmp_path / "a.json.xz", lzma.compress(jsonl(rows_of([line.decode()])) * 65_000))
    write_csv(tmp_path / "a.csv", [line.decode()] * 65_000)
    rows = [f"{i} {line.decode()}" for i in range(65_000)]
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet", use_dictionary=False)
    peaks = peak_memory(tmp_path)
    assert len(peaks) == 9
    assert max(peaks.values()) < 100, peaks


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_row_of_100_mb(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", jsonl(["word " * 20_000_000, "next"]))
    (peak,) = peak_memory(tmp_path).values()
    assert peak < 600
    lengths = [len(part.text) for part in Reader(find([tmp_path])).parts()]
    assert (sum(lengths[:-1]), lengths[-1]) == (100_000_000, 4)
    assert max(lengths) == PART


PEAKS = """
import json, re, sys
from pathlib import Path
import pyarrow.parquet, zstandard
from gptkit_text.documents import Reader
from gptkit_text.files import find
def memory(kind):
    return int(re.search(kind + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3
peaks = {}
for file in find([sys.argv[1]]):
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for part in Reader([file]).parts():
        pass
    peaks[file.path.name] = memory("VmHWM") - before
print(json.dumps(peaks))
"""


def peak_memory(folder: Path) -> dict[str, float]:
    """MB that reading each file takes at most, in a process of its own."""
    command = [sys.executable, "-c", PEAKS, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)
