"""Shards from a real server on this machine, which stalls, drops, lies and goes away."""

import gzip
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from threading import enumerate as enumerate_threads
from time import perf_counter
from typing import Any
from zipfile import ZipFile

import pytest
import torch

from gptkit.plugin import Data, DataError, DownloadError, Split
from gptkit.testing import check_dataset
from gptkit_text.addresses import copy, name_of
from gptkit_text.dataset import Text
from gptkit_text.remote import RemoteShards
from gptkit_text.store import Store, size_of

SHARDS = 6
BLOCK = 32
END = 256  # of single bytes


def shard(number: int, *, documents: int = 40, words: int = 12) -> bytes:
    """JSONL whose every word says which shard it is from."""
    rng = random.Random(number)
    texts = (
        " ".join(f"s{number}w{rng.randrange(99)}" for _ in range(words)) for _ in range(documents)
    )
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


class Server(ThreadingHTTPServer):
    """Serves files by name; each request may meet a fault, and is told to `watch`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {f"s-{i}.jsonl": shard(i) for i in range(SHARDS)}
        self.faults: dict[str, list[str]] = {}
        """By name, what goes wrong in the next requests: the name of a method of the handler."""
        self.requests = list[str]()
        self.watch: Callable[[str], object] = lambda name: None
        self.closing = Event()

    @property
    def path(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data/s-{{0..{SHARDS - 1}}}.jsonl"

    def address(self, number: int) -> str:
        return f"http://127.0.0.1:{self.server_port}/data/s-{number}.jsonl"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rsplit("/", 1)[-1]
        self.server.requests.append(name)
        self.server.watch(name)
        faults = self.server.faults.get(name)
        with suppress(ConnectionError):
            if name not in self.server.files:
                self.send_error(404)
            else:
                getattr(self, faults.pop(0) if faults else "answer")(self.server.files[name])

    def answer(self, content: bytes, *, sent: int = 1 << 30, more: int = 0) -> None:
        wanted = self.headers["Range"]
        start = int(wanted[6:-1]) if wanted else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(content) - start + more))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start : start + sent])
        self.wfile.flush()

    def drop(self, content: bytes) -> None:
        self.answer(content, sent=len(content) // 3)

    def stall(self, content: bytes) -> None:
        self.drop(content)
        self.server.closing.wait()

    def lie(self, content: bytes) -> None:
        self.answer(content, more=10)

    def busy(self, content: bytes) -> None:
        self.send_error(503)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("gptkit.data.transfer.TIMEOUT", 0.3)
    monkeypatch.setattr("gptkit.data.transfer.PAUSES", (0.0, 0.01))
    with Server() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        settle()
        server.shutdown()
        thread.join()


@pytest.fixture
def load(server: Server) -> Callable[..., Data]:
    options = {"tokenizer": "byte", "block_size": BLOCK, "processes": 1, "order": "shuffle"}

    def load(**more: Any) -> Data:
        return Text.model_validate(options | {"path": server.path} | more).load()

    return load


Batch = tuple[torch.Tensor, torch.Tensor]


def read(split: Split, steps: range, *, seed: int = 1, batch_size: int = 8) -> list[Batch]:
    return [split[split.indices(seed, step, batch_size)] for step in steps]


def settle() -> None:
    """Wait until nothing is fetched in the background."""
    for thread in enumerate_threads():
        if thread.name == "gptkit-text-ahead":
            thread.join()


def equal(left: Sequence[Batch], right: Sequence[Batch]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(torch.equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True))


def shards_of(batch: Batch) -> set[int]:
    """The shards whose words are in a batch."""
    text = bytes(token for token in batch[0].flatten().tolist() if token != END)
    return {int(number) for number in re.findall(rb"s(\d)w", text)}


def epoch(split: Split, batch_size: int = 8) -> range:
    """The steps of about an epoch."""
    assert isinstance(split, RemoteShards)
    return range(-(-SHARDS * split.visits.windows // batch_size))


def test_it_keeps_the_contract(server: Server) -> None:
    for order, tokenizer in (("sample", "byte"), ("shuffle", {"train": 300})):
        options = {"path": server.path, "tokenizer": tokenizer, "block_size": 16, "order": order}
        check_dataset(Text.model_validate(options), prompts=["", "s1w2"])


def test_each_shard_is_visited_and_fetched_once(load: Callable[..., Data], server: Server) -> None:
    data = load()
    assert server.requests == ["s-0.jsonl"]
    found = read(data.train, epoch(data.train))
    assert Counter(server.requests) == {f"s-{i}.jsonl": 1 for i in range(SHARDS)}
    seen = [shards_of(batch) for batch in found]
    assert set.union(*seen) == set(range(SHARDS))
    assert all(len(numbers) <= 2 for numbers in seen)
    order = [name[2] for name in server.requests]
    assert order != sorted(order)
    assert equal(read(data.train, epoch(data.train)), found)
    assert len(server.requests) == SHARDS


def test_validation_is_of_the_first_shard_and_never_trained_on(load: Callable[..., Data]) -> None:
    data = load(documents="mark", val_fraction=0.2)
    val = read(data.val, range(20))
    assert set.union(*map(shards_of, val)) == {0}
    words = {tuple(row) for x, _ in read(data.train, range(99)) for row in x[:, :12].tolist()}
    assert not words & {tuple(row) for x, _ in val for row in x[:, :12].tolist()}


def test_the_next_shard_is_fetched_before_it_is_needed(
    load: Callable[..., Data], server: Server
) -> None:
    asked = Event()
    data = load()
    server.watch = lambda name: asked.set()
    (first,) = read(data.train, range(1))
    assert shards_of(first) == {0}
    assert asked.wait(60)
    found = read(data.train, epoch(data.train))
    second = next(numbers for numbers in map(shards_of, found) if numbers != {0})
    assert server.requests[1] in {f"s-{number}.jsonl" for number in second}


def test_a_resumed_training_reads_the_same_with_or_without_the_cache(
    load: Callable[..., Data], server: Server, cache: Path
) -> None:
    data = load()
    whole = read(data.train, range(40))
    requests = len(server.requests)
    assert equal(read(load().train, range(21, 40)), whole[21:])
    assert len(server.requests) == requests
    settle()
    shutil.rmtree(cache)
    again = load()
    assert equal(read(again.train, range(33, 40)), whole[33:])
    assert again.sha256 == data.sha256
    settle()
    shutil.rmtree(cache / "text" / "remote" / "encoded")  # while training
    assert equal(read(again.train, range(20, 40)), whole[20:])
    assert equal(read(again.val, range(3)), read(data.val, range(3)))


class Scales:
    """Weighs the encoded shards and what is coming, whenever it is called."""

    def __init__(self) -> None:
        self.most = 0

    def __call__(self, name: str = "") -> None:
        store = Store(0)
        self.most = max(self.most, size_of(store.encoded) + size_of(store.incoming))


def test_cache_gb_is_kept(load: Callable[..., Data], server: Server, cache: Path) -> None:
    whole = read(load().train, range(140))
    settle()
    shutil.rmtree(cache)
    server.watch = scales = Scales()
    server.requests.clear()
    data = load(cache_gb=0.00005)
    for step, batch in enumerate(whole):
        assert equal(read(data.train, range(step, step + 1)), [batch])
        scales()
    assert 30_000 < scales.most <= 50_000
    assert len(server.requests) > SHARDS
    assert server.requests.count("s-0.jsonl") == 1


def test_two_trainings_share_a_cache_that_is_too_small_for_both(
    load: Callable[..., Data], server: Server
) -> None:
    whole = [read(load().train, range(70), seed=seed) for seed in (1, 2)]
    settle()
    shutil.rmtree(Store(0).encoded)
    server.watch = scales = Scales()

    def train(seed: int) -> list[Batch]:
        data, found = load(cache_gb=0.00005), list[Batch]()
        for step in range(70):
            found += read(data.train, range(step, step + 1), seed=seed)
            assert len(read(data.val, range(1))) == 1
            scales()
        return found

    with ThreadPoolExecutor(2) as pool:
        for expected, found in zip(whole, pool.map(train, (1, 2)), strict=True):
            assert equal(found, expected)
    assert scales.most <= 50_000


def test_too_little_room_is_told_at_the_start(load: Callable[..., Data]) -> None:
    with pytest.raises(DataError, match="cache_gb = 3e-05 is too small: 3 shards") as caught:
        load(cache_gb=0.00003)
    least = float(re.findall(r"set cache_gb to (\S+) or more", caught.value.hint or "")[0])
    load(cache_gb=least)


def test_a_shard_that_is_far_larger_than_the_first_one_has_no_room(
    load: Callable[..., Data], server: Server
) -> None:
    data = load(cache_gb=0.00005)
    for number in range(1, SHARDS):
        server.files[f"s-{number}.jsonl"] = shard(number, documents=2000)
    with pytest.raises(DataError, match=r"is too small: http\S*/s-\d.jsonl and the shards in use"):
        read(data.train, epoch(data.train))


def test_a_shard_that_has_no_room_leaves_those_of_other_trainings(
    load: Callable[..., Data], server: Server
) -> None:
    data = load()
    read(data.train, epoch(data.train))
    settle()
    before = size_of(Store(0).encoded)
    server.files["s-large.jsonl"] = shard(9, documents=9000)
    with pytest.raises(DataError, match=r"is too small: http\S*/s-large.jsonl and"):
        load(path=server.address(0).replace("s-0", "s-large"), cache_gb=before / 1e9)
    assert size_of(Store(0).encoded) == before


@pytest.mark.parametrize(
    "faults", [["drop"], ["stall"], ["lie"], ["busy", "busy"], ["drop", "busy"], ["lie", "stall"]]
)
def test_a_fault_that_passes_changes_nothing(
    load: Callable[..., Data], server: Server, cache: Path, faults: list[str]
) -> None:
    whole = read(load().train, range(30))
    settle()
    shutil.rmtree(cache)
    server.faults = {name: [*faults] for name in server.files}
    assert equal(read(load().train, range(30)), whole)


@pytest.mark.parametrize("fault", ["lie", "stall", "busy"])
def test_a_fault_that_lasts_names_the_shard(
    load: Callable[..., Data], server: Server, fault: str, cache: Path
) -> None:
    data = load()
    server.faults = {name: [fault] * 99 for name in server.files}
    with pytest.raises(DownloadError, match=r"http\S+/s-\d.jsonl: cannot be downloaded in 3 tries"):
        read(data.train, epoch(data.train))
    assert list(Store(0).encoded.glob(".*.part")) == []
    assert not Store(0).incoming.exists()
    server.faults = {}
    assert len(read(data.train, epoch(data.train))) == len(epoch(data.train))


def test_a_missing_shard_is_told_when_it_is_needed(
    load: Callable[..., Data], server: Server
) -> None:
    data = load()
    for number in range(1, SHARDS):
        del server.files[f"s-{number}.jsonl"]
    steps = data.train.visits.windows // 8  # type: ignore[attr-defined]
    read(data.train, range(steps))
    with pytest.raises(DownloadError, match=r"http\S+/s-\d.jsonl: .*HTTP 404"):
        read(data.train, range(steps, steps + 2))


def test_no_network_at_the_start(load: Callable[..., Data]) -> None:
    with pytest.raises(DownloadError, match=r"s-0.jsonl: cannot be .* in 3 tries: no answer"):
        load(path="http://127.0.0.1:9/s-{0..2}.jsonl")


def test_a_shard_that_changed_since_it_was_read_is_refused(
    load: Callable[..., Data], server: Server, cache: Path
) -> None:
    data = load()
    read(data.train, epoch(data.train))
    settle()
    shutil.rmtree(Store(0).encoded)
    server.files["s-3.jsonl"] = shard(33)
    with pytest.raises(DataError, match=r"s-3.jsonl: has changed since") as caught:
        read(data.train, epoch(data.train))
    known = (caught.value.hint or "").rpartition("delete ")[2]
    settle()
    Path(known).unlink()
    read(load().train, epoch(data.train))


def test_another_first_shard_is_other_data(load: Callable[..., Data], server: Server) -> None:
    sha256 = load().sha256
    settle()
    shutil.rmtree(Store(0).known)
    server.files["s-0.jsonl"] = shard(10)
    assert load().sha256 != sha256


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b"", "s-4.jsonl: too short for block_size 32: 0 tokens for training"),
        (b'{"text": "a"}\n', "s-4.jsonl: too short for block_size 32: 3 tokens for training"),
        (b'{"text": "a"}\n{"text": ', r"/data/s-4.jsonl: row 2: "),
        (b'{"txt": "a"}\n', r"/data/s-4.jsonl: row 1: .*txt"),
    ],
    ids=["empty", "short", "broken", "key"],
)
def test_a_shard_that_cannot_be_used_is_named(
    load: Callable[..., Data], server: Server, contents: bytes, said: str
) -> None:
    server.files["s-4.jsonl"] = contents
    data = load()
    with pytest.raises(DataError, match=said) as caught:
        read(data.train, epoch(data.train))
    assert str(caught.value).startswith("http://127.0.0.1")


def test_a_window_is_the_text_of_its_shard(load: Callable[..., Data], server: Server) -> None:
    """In a shard that is longer than the first one, and in a shorter one."""
    server.files["s-1.jsonl"] = shard(1, documents=90)
    server.files["s-2.jsonl"] = shard(2, documents=15)
    data = load(documents="join")
    texts = {
        number: "\n".join(json.loads(row)["text"] for row in contents.splitlines())
        for number, contents in enumerate(server.files.values())
    }
    places = list[int]()
    for x, y in read(data.train, epoch(data.train)):
        for row, target in zip(x.tolist(), y.tolist(), strict=True):
            text = bytes([*row, target[-1]]).decode()
            assert row[1:] == target[:-1]
            (number,) = shards_of((torch.tensor(row), torch.tensor(target))) or {0}
            if text in texts[number]:  # what is left out for validation interrupts the others
                places.append(texts[number].index(text) if number == 1 else 0)
    assert max(places) > len(texts[1]) // 2


def test_compressed_shards_and_other_kinds(load: Callable[..., Data], server: Server) -> None:
    whole = read(load().train, range(30))
    settle()
    shutil.rmtree(Store(0).root)
    server.files = {f"{name}.gz": gzip.compress(c) for name, c in server.files.items()}
    assert equal(read(load(path=f"{server.path}.gz?download=true").train, range(30)), whole)


def test_a_full_disk_is_told(load: Callable[..., Data]) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(DataError, match="the cache cannot be written: File too large"):
            load()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not Store(0).incoming.exists()
    load()


def test_an_address_gives_a_plain_name() -> None:
    names = {
        "https://a/b/x.jsonl.zst?token=a/b": "x.jsonl.zst",
        "s3://a/b%2F..%2F%C3%A9 c.txt": "é_c.txt",
        "https://a/..": "file",
        "https://a": "file",
        "https://user:password@a?file=x": "file",
        "https://a/b::c.txt": "b__c.txt",
        "memory://x.jsonl": "x.jsonl",
        "zip://train.jsonl::https://a/b.zip": "train.jsonl",
        "zip://a/train.csv::simplecache::https://a/b.zip": "train.csv",
        "simplecache::s3://a/b/x.jsonl": "x.jsonl",
        f"https://a/{'x' * 999}.txt": f"{'x' * 96}.txt",
    }
    assert {address: name_of(address) for address in names} == names


def test_addresses_and_paths_do_not_mix(load: Callable[..., Data], tmp_path: Path) -> None:
    for options in (
        {"path": [str(tmp_path), "https://a/b.txt"]},
        {"path": None, "sources": [{"path": "s3://a/b.txt"}, {"path": str(tmp_path), "name": "x"}]},
    ):
        with pytest.raises(DataError, match="cannot be mixed"):
            load(**options)


@pytest.mark.parametrize("path", ["http://127.0.0.1:9", "s3://bucket/text/"])
def test_the_address_of_a_folder_is_refused(load: Callable[..., Data], path: str) -> None:
    with pytest.raises(DataError, match="the address of a folder") as caught:
        load(path=path)
    assert caught.value.hint.endswith('/part-{00..09}.jsonl"')


def test_the_address_of_a_file_is_no_folder(
    load: Callable[..., Data], server: Server, tmp_path: Path
) -> None:
    whole = load(path=server.address(0))
    pack = tmp_path / "a.zip"
    with ZipFile(pack, "w") as file:
        file.writestr("s-0.jsonl", server.files["s-0.jsonl"])
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe("/s-0.jsonl", server.files["s-0.jsonl"])
    for path in ("memory://s-0.jsonl", f"zip://s-0.jsonl::{pack.as_uri()}"):
        assert equal(read(load(path=path).train, range(3)), read(whole.train, range(3)))
    fsspec.filesystem("memory").rm("/s-0.jsonl")
    server.files[""] = b"A text without a name. " * 99
    address = server.address(0).replace("data/s-0.jsonl", "?file=x.txt")
    assert load(path=address, documents="join").vocab_size == 256


def test_an_epoch_of_the_recipe_is_one_of_the_shards(load: Callable[..., Data]) -> None:
    train = load(block_size=12 * BLOCK, val_fraction=0.4).train
    steps = math.ceil(len(train) / train.stride)  # as `train.epochs = 1` counts them
    assert steps == SHARDS * train.visits.windows
    visited = [int(train.indices(1, step, 1)[0]) // train.visits.span for step in range(steps)]
    assert sorted(visited) == sorted([*range(SHARDS)] * train.visits.windows)
    train[torch.tensor([len(train) - 1])]


# fsspec


@pytest.fixture
def memory(server: Server) -> Iterator[str]:
    """The shards in the memory of fsspec."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for name, contents in server.files.items():
        system.pipe(f"/data/{name}", contents)
    yield "memory://data/s-{0..5}.jsonl"
    system.rm("/data", recursive=True)


def test_shards_of_fsspec_are_the_same(
    load: Callable[..., Data], server: Server, memory: str, tmp_path: Path
) -> None:
    whole = read(load().train, range(40))
    assert equal(read(load(path=memory).train, range(40)), whole)
    for name, contents in server.files.items():
        (tmp_path / name).write_bytes(contents)
    path = (tmp_path / "s-{0..5}.jsonl").as_uri().replace("%7B", "{").replace("%7D", "}")
    assert equal(read(load(path=path).train, range(40)), whole)


def test_what_fsspec_cannot_read_is_told(
    load: Callable[..., Data], memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DownloadError, match=r"data/x.jsonl: cannot be read: there is no such"):
        load(path="memory://data/x.jsonl")
    with pytest.raises(DownloadError, match=r"memory:///data: cannot be read: it is a folder"):
        load(path="memory:///data")
    monkeypatch.setattr("gptkit_text.addresses.PAUSES", ())
    with pytest.raises(DownloadError, match=r"x.txt: cannot be read in 1 tries: ConnectionRefused"):
        load(path="ftp://127.0.0.1:9/x.txt")
    with pytest.raises(DataError, match="nonsense://a/b: Protocol not known"):
        load(path="nonsense://a/b")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(DataError, match="needs the package fsspec") as caught:
        load(path=memory)
    assert "pip install fsspec" in (caught.value.hint or "")


def test_fsspec_writes_no_more_than_it_says(
    server: Server, memory: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory_files = pytest.importorskip("fsspec.implementations.memory")
    monkeypatch.setattr("gptkit_text.addresses.PAUSES", (0.0,))
    monkeypatch.setattr("gptkit_text.addresses.CHUNK", 8)
    monkeypatch.setattr(memory_files.MemoryFileSystem, "size", lambda self, path: 10)
    with pytest.raises(DownloadError, match="in 2 tries: more than the 10 bytes came"):
        copy("memory://data/s-0.jsonl", tmp_path / "x", expect=lambda size: None)
    assert (tmp_path / "x").stat().st_size == 8


def test_fsspec_is_tried_again_and_checked(
    load: Callable[..., Data], memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_files = pytest.importorskip("fsspec.implementations.memory")
    monkeypatch.setattr("gptkit_text.addresses.PAUSES", (0.0, 0.0))
    right, sizes = memory_files.MemoryFileSystem.size, iter([OSError("reset"), 7, None])

    def size(self: Any, path: str) -> Any:
        found = next(sizes, right)
        if isinstance(found, OSError):
            raise found
        return found(self, path) if callable(found) else found

    monkeypatch.setattr(memory_files.MemoryFileSystem, "size", size)
    with pytest.raises(DownloadError, match="cannot be read in 3 tries: nobody says how long"):
        load(path=memory)
    assert not Store(0).incoming.exists()
    load(path=memory)


def test_fsspec_connects_anew_for_each_try(
    load: Callable[..., Data], memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that cannot connect at first, then loses its connection for good."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr("gptkit_text.addresses.PAUSES", (0.0, 0.0))
    states = iter(["refused", "lost"])

    class Flaky(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
        protocol = "flaky"

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.state = next(states, "good")
            if self.state == "refused":
                raise ConnectionRefusedError(111, "Connection refused")

        @classmethod
        def _strip_protocol(cls, path: str) -> Any:
            return super()._strip_protocol(path.replace("flaky", "memory"))

        def open(self, path: str, mode: str) -> Any:
            if self.state == "lost":
                raise ConnectionResetError(104, "Connection reset")
            file = super().open(path, mode)
            monkeypatch.setattr(file, "close", lambda: 1 // 0)
            return file

    fsspec.register_implementation("flaky", Flaky, clobber=True)
    found = load(path=memory.replace("memory", "flaky"))
    assert next(states, None) is None
    assert found.sha256 == load(path=memory).sha256


# real trainings


@pytest.fixture
def recipe(server: Server, tmp_path: Path) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(f"""
        seed = 1
        [dataset]
        use = "text"
        path = "{server.path}"
        tokenizer = "byte"
        block_size = {BLOCK}
        order = "shuffle"
        processes = 1
        cache_gb = 0.00005
        [model]
        n_layer = 1
        n_head = 2
        n_embd = 16
        [train]
        steps = 60
        batch_size = 8
        eval_every = 30
        eval_batches = 2
        save_every = 4
        device = "cpu"
        [[callbacks]]
        use = "log"
        every = 1
    """)
    return path


def gptkit(
    *arguments: object, cache: Path, ranks: int = 1, report: Callable[[Any], None] | None = None
) -> tuple[int, str]:
    """The exit code and stderr of the command."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    process = subprocess.Popen(
        [sys.executable, *launcher, "-m", "gptkit", *map(str, arguments)],
        env=os.environ | {"GPTKIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if report:
        report(process)
    _, told = process.communicate(timeout=280)
    return process.returncode, told


def weights(run: Path) -> bytes:
    (path,) = (run / "checkpoints").glob("*60/model.safetensors")
    return path.read_bytes()


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kill_9_and_resume_give_the_same_weights(
    recipe: Path, server: Server, tmp_path: Path
) -> None:
    whole, run, cache = tmp_path / "whole", tmp_path / "run", tmp_path / "other"
    code, told = gptkit("train", recipe, "--out", whole, cache=tmp_path / "cache")
    assert code == 0, told
    started = Event()
    process: subprocess.Popen[str] | None = None

    def start(found: "subprocess.Popen[str]") -> None:
        nonlocal process
        process = found
        started.set()

    def kill(name: str) -> None:
        if len(server.requests) == 5:
            started.wait()
            assert process
            process.kill()

    server.requests.clear()
    server.watch = kill
    code, told = gptkit("train", recipe, "--out", run, cache=cache, report=start)
    assert code == -9, told
    server.watch = lambda name: None
    missing = server.files.pop(server.requests[-1])
    code, told = gptkit("resume", run, cache=cache)
    assert code == 1, told
    assert re.search(rf"error: http\S+/{server.requests[-1]}: .*HTTP 404", told)
    server.files[server.requests[-1]] = missing
    settle()
    shutil.rmtree(cache)
    code, told = gptkit("resume", run, cache=cache)
    assert code == 0, told
    assert weights(run) == weights(whole)


@pytest.mark.slow
def test_a_training_ends_at_once_while_a_shard_is_awaited(
    recipe: Path, server: Server, tmp_path: Path
) -> None:
    server.faults = {name: ["stall"] * 9 for name in server.files if name != "s-0.jsonl"}
    begin = perf_counter()
    code, told = gptkit(
        "train", recipe, "--out", tmp_path / "run", "--set", "train.steps=8", cache=tmp_path / "c"
    )
    assert code == 0, told
    assert any(name != "s-0.jsonl" for name in server.requests)
    assert perf_counter() - begin < 60  # the server is left after 30 s, five times


@pytest.mark.slow
def test_a_signal_ends_the_wait_for_a_shard_and_saves(
    recipe: Path, server: Server, tmp_path: Path
) -> None:
    server.faults = {name: ["stall"] * 9 for name in server.files if name != "s-0.jsonl"}
    run, cache = tmp_path / "run", tmp_path / "c"
    took = list[float]()

    def stop(process: "subprocess.Popen[str]") -> None:
        assert process.stderr
        while "training waits for" not in (line := process.stderr.readline()):
            assert line
        process.send_signal(signal.SIGINT)
        begin = perf_counter()
        process.wait(40)
        took.append(perf_counter() - begin)

    code, told = gptkit("train", recipe, "--out", run, cache=cache, report=stop)
    assert code == 130, told
    assert took[0] < 20
    server.faults = {}
    done = len(losses(run))
    assert (run / "checkpoints" / f"step-{done:08}").is_dir()
    assert f"step {done}" in told
    code, told = gptkit("resume", run, cache=cache)
    assert code == 0, told


@pytest.mark.slow
def test_two_ranks_are_as_one(recipe: Path, server: Server, tmp_path: Path) -> None:
    found = []
    for ranks in (1, 2):
        server.requests.clear()
        run, cache = tmp_path / f"run-{ranks}", tmp_path / f"cache-{ranks}"
        code, told = gptkit(
            "train", recipe, "--out", run, "--set", "dataset.cache_gb=1", cache=cache, ranks=ranks
        )
        assert code == 0, told
        assert len(server.requests) == len(set(server.requests))
        found.append(losses(run))
    assert len(found[0]) == 60
    assert found[0] == pytest.approx(found[1], rel=1e-4)
