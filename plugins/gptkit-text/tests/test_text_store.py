"""The store of encoded shards: what is used least recently goes, what is known stays."""

import os
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread

import pytest

from gptkit.plugin import DataError
from gptkit_text.store import Known, Store

KNOWN = Known(address="https://a/1", text_key="text", source="abc", size=5)


@pytest.fixture
def store(cache: Path) -> Store:
    """With four shards of 100 bytes each in 450, used in the order of their names."""
    store = Store(450)
    with store.filling():
        for i in range(4):
            folder = store.encoded / f"{i}"
            folder.mkdir()
            (folder / "train.bin").write_bytes(bytes(100))
            os.utime(folder, (i, i))
    return store


def left(store: Store) -> list[str]:
    return sorted(path.name for path in store.encoded.iterdir())


@pytest.mark.parametrize(
    ("need", "keep", "missing", "stay"),
    [
        (0, [], 0, "0123"),
        (50, [], 0, "0123"),
        (51, [], 0, "123"),
        (250, [], 0, "23"),
        (250, ["0", "2"], 0, "02"),
        (300, ["0", "2"], 50, "0123"),
        (450, [], 0, ""),
        (451, [], 1, "0123"),
        (10**15, ["1"], 10**15 - 350, "0123"),
    ],
)
def test_the_least_recently_used_shards_go(
    store: Store, need: int, keep: list[str], missing: int, stay: str
) -> None:
    with store.filling():
        found = store.make_room(need, keep=[store.encoded / name for name in keep])
    assert found == missing
    assert left(store) == list(stay)


def test_a_guess_may_be_too_large_for_all_the_room(store: Store) -> None:
    with store.filling():
        assert store.make_room(500, least=451) == 50
        assert left(store) == ["0", "1", "2", "3"]
        assert store.make_room(500, least=300) == 50
        assert left(store) == []


def test_what_has_grown_too_large_makes_the_others_go(store: Store) -> None:
    (store.encoded / "2" / "train.bin").write_bytes(bytes(500))
    with store.filling():
        assert store.make_room(0, keep=[store.encoded / "2"]) == 50
    assert left(store) == ["2"]


def test_what_is_coming_takes_room_too(store: Store) -> None:
    with store.filling():
        (store.incoming / "shard").write_bytes(bytes(60))
        assert store.make_room(0) == 0
    assert left(store) == ["1", "2", "3"]
    assert not store.incoming.exists()


def test_use_is_noted(store: Store) -> None:
    store.use(store.encoded / "0")
    store.use(store.encoded / "gone")
    with store.filling():
        store.make_room(150)
    assert left(store) == ["0", "2", "3"]


def test_what_killed_processes_left_goes(store: Store) -> None:
    store.incoming.mkdir()
    (store.incoming / "half").write_bytes(bytes(99))
    (store.encoded / ".x.part").mkdir()
    (store.encoded / ".x.lock").touch()
    with store.filling():
        assert list(store.incoming.iterdir()) == []
        assert left(store) == ["0", "1", "2", "3"]


def test_who_waits_for_another_process_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    program = """
import sys
from gptkit_text.store import Store

with Store(1).filling():
    print(flush=True)
    sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()

        told = Event()
        monkeypatch.setattr("gptkit_text.alone.note", lambda line: (said.append(line), told.set()))
        end = Thread(target=lambda: (told.wait(60), process.stdin.close()))
        end.start()
        with store.filling():
            assert said == ["another process fetches or encodes a shard: waiting for it"]
        end.join()


def test_what_is_known_stays_and_what_is_damaged_is_not_known(store: Store) -> None:
    assert store.read_known(KNOWN.address, KNOWN.text_key) is None
    store.write_known(KNOWN)
    assert store.read_known(KNOWN.address, KNOWN.text_key) == KNOWN
    assert store.read_known(KNOWN.address, "other") is None
    (path,) = store.known.iterdir()
    path.write_text("{}")
    assert store.read_known(KNOWN.address, KNOWN.text_key) is None


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.write_text("")
    with pytest.raises(DataError, match="the cache cannot be written"), Store(1).filling():
        pass
