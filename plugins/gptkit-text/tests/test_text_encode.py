"""Encoding by real processes: interrupted, killed, damaged, at once; never other tokens."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptkit.plugin import DataError, RunError
from gptkit_text import encode, shards, writer
from gptkit_text.codec import TokenizerCodec
from gptkit_text.documents import Reader
from gptkit_text.files import find
from gptkit_text.fingerprint import Fingerprint
from gptkit_text.shards import Encoded, encoded, shared_share
from gptkit_text.worker import BlockEncoder, EncodedBlock

BYTES = TokenizerCodec(tokenizer="", end=256)
PROGRAM = """
import json, sys
from pathlib import Path
from gptkit_text import encode, writer
from gptkit_text.codec import TokenizerCodec
from gptkit_text.documents import Reader
from gptkit_text.files import find
from gptkit_text.shards import encoded
encode.EVERY, encode.SHARE, writer.SHARD = 0.0, float("inf"), 50_000
encode.BLOCK, encode.SMALL = 1 << 13, 1 << 14
encode.EVERY, encode.BLOCK, encode.SMALL, writer.SHARD = 0.0, 1 << 13, 1 << 14, 50_000
texts = 0

class Writer(writer.Writer):
    def write(self, block, tokens):
        global texts
        super().write(block, tokens)
        texts += len(block.texts)

import gptkit_text.shards
gptkit_text.shards.Writer = Writer
codec = TokenizerCodec(tokenizer="", end=256)
try:
    found = encoded(
        Reader(find([sys.argv[1]])), codec, val_fraction=0.1, processes=int(sys.argv[2])
    )
except KeyboardInterrupt:
    sys.exit(130)
print(json.dumps([texts, str(found.folder)]))
"""
"""Encodes a text in small blocks, with a journal after each; says how many texts it encoded."""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    generator = random.Random(1)
    words = ["the", "of", "Straße", "日本", "🙂", "and", "\n", "x" * 50]
    with (tmp_path / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for i in range(1500):
            text = " ".join(generator.choices(words, k=generator.randrange(1, 60)))
            file.write(json.dumps({"text": f"{i} {text}"}) + "\n")
    return tmp_path / "corpus.jsonl"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "EVERY", 0.0)
    monkeypatch.setattr(encode, "SHARE", math.inf)
    monkeypatch.setattr(encode, "EVERY", 0.0)
    monkeypatch.setattr(encode, "BLOCK", 1 << 13)
    monkeypatch.setattr(encode, "SMALL", 1 << 14)
    monkeypatch.setattr(writer, "SHARD", 50_000)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the program in a session of its own; what is left of it ends with the test."""
    started = list[subprocess.Popen[str]]()

    def popen(corpus: Path, *, processes: int = 2) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", PROGRAM, str(corpus), str(processes)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, start_new_session=True, **pipes))  # type: ignore[call-overload]
        return started[-1]

    yield popen
    for process in started:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def encode_it(corpus: Path, *, processes: int = 1, val_fraction: float = 0.1) -> Encoded:
    reader = Reader(find([corpus]))
    return encoded(reader, BYTES, val_fraction=val_fraction, processes=processes)


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.iterdir() if path.is_file()]
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in files}


def texts_of(found: Encoded) -> list[str]:
    """All documents of both splits, in their order."""
    texts = []
    for split in ("train", "val"):
        parts = [np.fromfile(segment.path, np.uint16) for segment in found.segments(split)]
        tokens = np.concatenate([np.zeros(0, np.uint16), *parts])
        for document in np.split(tokens, np.flatnonzero(tokens == 256)):
            texts.append(document[document != 256].astype(np.uint8).tobytes().decode())
    return [text for text in texts if text]


def expected(corpus: Path) -> list[str]:
    return [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]


def wait_for(process: "subprocess.Popen[str]", is_so: Callable[[], bool]) -> None:
    """Look again and again until something is so; the process must be running."""
    deadline = time.monotonic() + 60
    while not is_so():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it takes too long"


def parts(cache: Path) -> list[Path]:
    return list(cache.glob("text/encoded/.*.part"))


def written(cache: Path) -> int:
    """The bytes of the tokens that a process has written so far."""
    size = 0
    for path in cache.glob("text/encoded/.*.part/*-*.bin"):
        with suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return list(map(int, found.stdout.split()))


def is_running(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.usefixtures("small")
def test_the_files_are_the_same_for_any_number_of_processes(
    corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    for processes in (1, 2, 3):
        monkeypatch.setenv("GPTKIT_CACHE", f"{cache}{processes}")
        folders.append(encode_it(corpus, processes=processes).folder)
    first = contents(folders[0])
    assert [contents(folder) for folder in folders] == [first] * 3
    assert {"train-00002.bin", "val-00000.bin", "index.json", "counts.bin"} < set(first)
    assert "journal.npz" not in first


@pytest.mark.usefixtures("small")
def test_every_document_is_there(corpus: Path) -> None:
    found = encode_it(corpus, processes=2)
    assert sorted(texts_of(found)) == sorted(expected(corpus))
    totals = (found.index.train, found.index.val)
    assert sum(total.documents for total in totals) == 1500
    assert sum(total.bytes for total in totals) == sum(len(t.encode()) for t in expected(corpus))
    assert found.counts().sum(1).tolist() == [total.tokens for total in totals]
    assert found.counts()[:, 256].tolist() == [total.documents + 1 for total in totals]


@pytest.mark.usefixtures("small")
def test_documents_longer_than_a_part_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptkit_text.documents.PART", 1000)
    (tmp_path / "long.txt").write_text("".join(f"line {i}\n" for i in range(5000)))
    found = encode_it(tmp_path / "long.txt", processes=2)
    assert texts_of(found) == [(tmp_path / "long.txt").read_text()]


def kill_and_continue(corpus: Path, cache: Path, start: Start, instants: list[float]) -> None:
    """Kill a process that encodes at some shares of its work; then compare with a whole run."""
    whole, total = (
        contents(encode_it(corpus).folder),
        2 * sum(len(text.encode()) + 1 for text in expected(corpus)),
    )
    for path in cache.glob("text/encoded/*"):
        path.rename(cache / path.name)
    for share in instants:
        process = start(corpus)
        wait_for(process, lambda share=share: written(cache) >= share * total)  # type: ignore[misc]
        workers = children(process.pid)
        process.kill()
        process.wait()
        wait_for_end(workers)
        assert not list(cache.glob("text/encoded/[0-9a-f]*"))
    done = encode_it(corpus)
    assert contents(done.folder) == whole
    assert not parts(cache)


def wait_for_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, "a process is left"


@pytest.mark.usefixtures("small")
def test_a_killed_process_is_continued(corpus: Path, cache: Path, start: Start) -> None:
    kill_and_continue(corpus, cache, start, [0.0, 0.3, 0.6, 0.9])


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_twenty_kills_change_nothing(corpus: Path, cache: Path, start: Start) -> None:
    kill_and_continue(corpus, cache, start, [i / 21 for i in range(20)])


@pytest.mark.usefixtures("small")
def test_what_the_journal_has_is_not_encoded_again(
    corpus: Path, cache: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(corpus)
    wait_for(process, lambda: written(cache) > 150_000)
    process.kill()
    process.wait()
    (part,) = parts(cache)
    with closing(writer.Writer(part, BYTES)) as found:
        done = found.parts
    again = list[bytes]()

    class Counting(BlockEncoder):
        def encode(self, texts: Any, firsts: Any) -> EncodedBlock:
            again.extend(texts)
            return super().encode(texts, firsts)

    monkeypatch.setattr(encode, "BlockEncoder", Counting)
    assert done > 100
    encode_it(corpus)
    assert [text.decode() for text in again] == expected(corpus)[done:]


@pytest.mark.usefixtures("small")
def test_ctrl_c_ends_all_processes_and_is_continued(
    corpus: Path, cache: Path, start: Start
) -> None:
    process = start(corpus)
    wait_for(process, lambda: written(cache) > 100_000)
    workers = children(process.pid)
    assert len(workers) == 2
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")
    wait_for_end(workers)
    assert len(parts(cache)) == 1
    out, err = start(corpus).communicate(timeout=100)
    assert re.search(r"encoding corpus\.jsonl goes on after [0-9,]+ documents, where it was", err)
    assert json.loads(out)[0] < 1500
    assert sorted(texts_of(encode_it(corpus))) == sorted(expected(corpus))


def test_two_processes_encode_once(corpus: Path, cache: Path, start: Start) -> None:
    processes = [start(corpus), start(corpus)]
    told = [process.communicate(timeout=100) for process in processes]
    assert all(process.returncode == 0 for process in processes), told
    (first, folder), (second, same) = (json.loads(out) for out, _ in told)
    assert sorted([first, second]) == [0, 1500] and folder == same


def test_who_waits_says_so(corpus: Path, cache: Path, start: Start) -> None:
    process = start(corpus)
    wait_for(process, lambda: written(cache) > 0)
    os.kill(process.pid, signal.SIGSTOP)
    waiting = start(corpus)
    assert waiting.stderr
    assert "another process encodes corpus.jsonl: waiting for it" in waiting.stderr.readline()
    os.kill(process.pid, signal.SIGCONT)
    assert json.loads(waiting.communicate(timeout=100)[0])[0] == 0


def test_a_worker_that_dies_is_an_error_in_words(
    corpus: Path, cache: Path, start: Start, tmp_path: Path
) -> None:
    process = start(corpus)
    wait_for(process, lambda: len(children(process.pid)) == 2 and written(cache) > 100_000)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert f"{RunError.__name__}: a process that encodes text has ended (exit code -9)" in err
    assert len(parts(cache)) == 1


@pytest.mark.parametrize("harm", ["remove", "cut", "garble", "flip"])
@pytest.mark.parametrize("name", ["index.json", "train-00001.bin", "val-00000.bin", "counts.bin"])
@pytest.mark.usefixtures("small")
def test_a_damaged_cache_is_encoded_anew(corpus: Path, name: str, harm: str) -> None:
    found = encode_it(corpus)
    whole = contents(found.folder)
    damage(found.folder / name, harm)
    assert contents(encode_it(corpus).folder) == whole


def damage(path: Path, harm: str) -> None:
    data = bytearray(path.read_bytes())
    if harm == "remove":
        path.unlink()
    elif harm == "cut":
        os.truncate(path, len(data) - 2)
    elif harm == "garble":
        path.write_bytes(b"\xff{")
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("harm", ["remove", "cut", "garble", "flip"])
@pytest.mark.parametrize("name", ["journal.npz", "train-00000.bin", "train-00001.bin"])
@pytest.mark.usefixtures("small")
def test_a_damaged_part_is_not_continued(
    corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, harm: str
) -> None:
    whole = contents(encode_it(corpus).folder)
    monkeypatch.setenv("GPTKIT_CACHE", f"{cache}2")
    interrupt(corpus, monkeypatch, after=60_000)
    (part,) = parts(Path(f"{cache}2"))
    damage(part / name, harm)
    assert contents(encode_it(corpus).folder) == whole


def interrupt(corpus: Path, monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Encode until there are so many tokens, as a kill would end it."""

    class Stopped(writer.Writer):
        def save(self) -> None:
            super().save()
            if self._splits[0].totals.tokens > after:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards, "Writer", Stopped)
        with pytest.raises(KeyboardInterrupt):
            encode_it(corpus)


@pytest.mark.usefixtures("small")
def test_what_was_written_after_the_journal_is_cut_off(
    corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(encode_it(corpus).folder)
    monkeypatch.setenv("GPTKIT_CACHE", f"{cache}2")
    interrupt(corpus, monkeypatch, after=60_000)
    (part,) = parts(Path(f"{cache}2"))
    for name in ("train-00001.bin", "val-00000.bin"):
        with (part / name).open("ab") as file:
            file.write(b"half a block")
    (part / "train-00002.bin").write_bytes(b"a shard")
    (part / "index.json").write_bytes(b"{")
    assert contents(encode_it(corpus).folder) == whole


@pytest.mark.usefixtures("small")
def test_another_text_or_tokenizer_is_another_folder(corpus: Path, tmp_path: Path) -> None:
    first = encode_it(corpus)
    joined = encoded(
        Reader(find([corpus])), TokenizerCodec(tokenizer=""), val_fraction=0.1, processes=1
    )
    replaced = encoded(
        Reader(find([corpus]), errors="replace"), BYTES, val_fraction=0.1, processes=1
    )
    corpus.write_text(json.dumps({"text": "other"}))
    found = [first, joined, replaced, encode_it(corpus), encode_it(corpus, val_fraction=0.2)]
    assert len({one.folder for one in found}) == 5
    assert texts_of(found[3]) == ["other"]


def test_a_folder_is_used_again_wherever_the_files_are(corpus: Path, tmp_path: Path) -> None:
    first = encode_it(corpus)
    os.utime(first.folder / "index.json", ns=(0, 0))
    encode_it(corpus.rename(tmp_path / "moved.jsonl"))
    assert (first.folder / "index.json").stat().st_mtime_ns == 0


def test_files_with_a_known_digest_are_not_read_again(corpus: Path) -> None:
    first, reader = encode_it(corpus), Reader(find([corpus]))
    source = Fingerprint.of(reader.files)
    corpus.unlink()
    again = encoded(reader, BYTES, val_fraction=0.1, processes=1, source=source)
    assert contents(again.folder) == contents(first.folder)
    assert again.segments("train") == first.segments("train")


def test_a_folder_that_cannot_be_renamed_is_continued(
    corpus: Path, small: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path, target: Path) -> Path:
        raise OSError("power is cut")

    with monkeypatch.context() as patch, pytest.raises(DataError):
        patch.setattr(Path, "rename", fail)
        encode_it(corpus)
    found = encode_it(corpus)
    assert "goes on after" in capsys.readouterr().err
    assert sorted(texts_of(found)) == sorted(expected(corpus))
    assert not (found.folder / writer.JOURNAL).exists()


def test_a_file_that_has_changed_since_its_digest_is_not_encoded(corpus: Path, cache: Path) -> None:
    reader = Reader(find([corpus]))
    source = Fingerprint.of(reader.files)
    corpus.write_text(json.dumps({"text": "other"}))
    with pytest.raises(DataError, match=r"corpus\.jsonl: changed while it was read"):
        encoded(reader, BYTES, val_fraction=0.1, processes=1, source=source)
    assert not parts(cache) and not list(cache.glob("text/encoded/[0-9a-f]*"))


@pytest.mark.usefixtures("small")
def test_no_journal_is_of_a_file_that_changed_after_its_digest(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(writer.Writer):
        def save(self) -> None:
            super().save()
            raise KeyboardInterrupt

    reader, whole = Reader(find([corpus])), corpus.read_bytes()
    source = Fingerprint.of(reader.files)
    corpus.write_bytes(whole.replace(b'"text": "', b'"text": "other '))
    with monkeypatch.context() as patch, pytest.raises((DataError, KeyboardInterrupt)):
        patch.setattr(shards, "Writer", Stopping)
        encoded(reader, BYTES, val_fraction=0.1, processes=1, source=source)
    corpus.write_bytes(whole)
    assert sorted(texts_of(encode_it(corpus))) == sorted(expected(corpus))


@pytest.mark.parametrize("when", ["journal", "end"])
@pytest.mark.usefixtures("small")
def test_a_file_that_changes_meanwhile_leaves_nothing(
    corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    class Changing(writer.Writer):
        def write(self, block: Any, tokens: Any) -> None:
            super().write(block, tokens)
            if self.parts == 1500 or when == "journal":
                corpus.write_text(json.dumps({"text": "other"}))

    with monkeypatch.context() as patch:
        patch.setattr(shards, "Writer", Changing)
        with pytest.raises(DataError, match=r"corpus\.jsonl: changed while it was read"):
            encode_it(corpus)
    assert not parts(cache) and not list(cache.glob("text/encoded/[0-9a-f]*"))
    assert texts_of(encode_it(corpus)) == ["other"]


def test_a_bad_row_leaves_nothing(corpus: Path, cache: Path) -> None:
    with corpus.open("a") as file:
        file.write('{"words": "x"}\n')
    with pytest.raises(DataError, match="row 1,501"):
        encode_it(corpus)
    assert not parts(cache) and not list(cache.glob("text/encoded/[0-9a-f]*"))


@pytest.mark.usefixtures("small")
def test_what_is_encoded_stays_where_a_package_is_missing(
    corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pyarrow, parquet = map(pytest.importorskip, ("pyarrow", "pyarrow.parquet"))
    later = corpus.with_name("later.parquet")
    parquet.write_table(pyarrow.table({"text": ["at last"]}), later)

    def load() -> Encoded:
        return encoded(Reader(find([corpus, later])), BYTES, val_fraction=0.1, processes=1)

    with monkeypatch.context() as patch, pytest.raises(DataError, match="needs the package"):
        patch.setitem(sys.modules, "pyarrow", None)
        load()
    assert parts(cache)
    assert sorted(texts_of(load())) == sorted([*expected(corpus), "at last"])
    assert "goes on after" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_named(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTKIT_CACHE", str(corpus / "cache"))  # below a file: not even root can
    with pytest.raises(DataError, match="the cache cannot be written"):
        encode_it(corpus)


ALONE = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.mark.usefixtures("small")
def test_a_full_disk_is_named_and_continued(corpus: Path, tmp_path: Path) -> None:
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here")
    disk = tmp_path / "disk"
    disk.mkdir()
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    mount, again = f"mount -t tmpfs -o size=200k tmpfs {disk}", f"mount -o remount,size=9m {disk}"
    run = f"{sys.executable} {program} {corpus} 1"
    script = f"{mount}; {run}; echo $?; {again}; {run}"
    done = subprocess.run(
        [*ALONE, "sh", "-c", script],
        env=os.environ | {"GPTKIT_CACHE": str(disk)},
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert re.search(r"CacheError: .*: the cache cannot be written: No space left", done.stderr)
    code, told = done.stdout.splitlines()
    assert code == "1" and 0 < json.loads(told)[0] < 1500


def test_what_nobody_continues_is_deleted_after_a_month(corpus: Path, cache: Path) -> None:
    old, new = (cache / "text" / "encoded" / f".{name}.part" for name in ("old", "new"))
    old.mkdir(parents=True)
    new.mkdir()
    os.utime(old, (0, 0))
    encode_it(corpus)
    assert parts(cache) == [new]


def test_near_duplicates_across_the_splits_are_counted(tmp_path: Path) -> None:
    texts = [f"number {i}, and so on" for i in range(400)]
    near = [text.upper().replace(",", " —") for text in texts[:200]]
    (tmp_path / "a.txt").write_text("x")
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts + near))
    found = encode_it(path, val_fraction=0.5)
    assert 0.2 < shared_share([found]) < 0.5  # a third of all contents are there twice
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert shared_share([encode_it(path, val_fraction=0.5)]) == 0.0


def test_shared_documents_are_estimated_from_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SKETCH", 300)
    monkeypatch.setattr(shards, "SKETCH", 300)
    texts = [f"number {i}" for i in range(3000)]
    path = tmp_path / "a.jsonl"
    rows = texts + [text.upper() for text in texts]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    found = encode_it(path, val_fraction=0.5)
    assert len(found.sketch("train")) == len(found.sketch("val")) == 300
    assert shared_share([found]) == pytest.approx(2 / 3, abs=0.12)


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    peaks = []
    for count in (1, 4):
        path = tmp_path / f"{count}.txt"
        with path.open("w") as file:
            for _ in range(count * 16):
                file.write("abcdefg\n" * (1 << 17))
        tracemalloc.start()
        try:
            found = encode_it(path)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert found.index.train.tokens + found.index.val.tokens == (count << 24) + 2
    assert peaks[1] < 1.1 * peaks[0] < 100 << 20
