"""`fetch` against a real server on this machine, `cached` against builders that fail."""

import contextlib
import gzip
import hashlib
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from gptkit.data.download import cache_folder, cached, fetch
from gptkit.errors import DownloadError

CONTENT = bytes(range(256)) * 4000  # a megabyte: several reads
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SIZE = len(CONTENT)


class Server(ThreadingHTTPServer):
    """Serves CONTENT at every path but /missing; each request's Range is kept in `requests`."""

    content = CONTENT
    cut_after: int | None = None
    """Break the connection after so many bytes."""
    ranges = True
    """Whether a Range is honoured."""
    endless = False
    """Whether to send for ever, and no length."""
    trickling = False
    """Whether to send a byte now and then."""
    compressed = False
    """Whether to send it compressed, as if that had been asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str | None] = []
        self.closing = Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/folder/text.txt"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.requests.append(wanted)
        if self.path == "/missing":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        start = start if self.server.ranges else 0
        body = self.server.content[start:]
        body = gzip.compress(body) if self.server.compressed else body
        self.send_response(206 if start else 200)
        if self.server.endless:
            self._send_for_ever(body)
            return
        if self.server.compressed:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{SIZE - 1}/{SIZE}")
        self.end_headers()
        if self.server.trickling:
            self._trickle(body)
        else:
            self.wfile.write(body[: self.server.cut_after])

    def _trickle(self, body: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            for byte in body[:100]:
                self.wfile.write(bytes([byte]))
                self.server.closing.wait(0.05)

    def _send_for_ever(self, body: bytes) -> None:
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            while True:
                self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def get(server: Server) -> Callable[[], Path]:
    return lambda: fetch(server.url, sha256=SHA256, size=SIZE)


def downloads() -> list[Path]:
    return [path for path in cache_folder("downloads").glob("*") if path.suffix != ".lock"]


def test_a_file_is_downloaded_once(server: Server, get: Callable[[], Path]) -> None:
    path = get()
    assert path.read_bytes() == CONTENT
    assert path.name.endswith("text.txt")
    assert get() == path
    assert server.requests == [None]
    assert downloads() == [path]


def test_a_file_that_was_put_there_needs_no_network(server: Server) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch(server.url.replace("folder/text.txt", "missing"), sha256=SHA256, size=SIZE)
    place = Path((caught.value.hint or "").partition("put the file at ")[2])
    place.write_bytes(CONTENT)
    requests = len(server.requests)
    assert (
        fetch(server.url.replace("folder/text.txt", "missing"), sha256=SHA256, size=SIZE) == place
    )
    assert len(server.requests) == requests


def test_a_damaged_file_in_the_cache_is_downloaded_again(
    server: Server, get: Callable[[], Path]
) -> None:
    path = get()
    path.write_bytes(CONTENT[:-1])
    assert get().read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_the_wrong_contents_never_enter_the_cache(server: Server, get: Callable[[], Path]) -> None:
    for wrong in (CONTENT[:-1] + b"!", CONTENT + b"!", b"<html>Please log in</html>" * 50000):
        server.content = wrong
        with pytest.raises(DownloadError, match="its sha256 differs"):
            get()
        assert downloads() == []
    server.content = CONTENT
    assert get().read_bytes() == CONTENT


def test_a_server_that_trickles_is_left(
    server: Server, get: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptkit.data.transfer.TIMEOUT", 0.2)
    server.trickling = True
    with pytest.raises(DownloadError, match="cannot be downloaded: the connection broke off"):
        get()
    assert downloads()[0].stat().st_size < 50


def test_an_interrupted_download_goes_on_where_it_stopped(
    server: Server, get: Callable[[], Path]
) -> None:
    server.cut_after = 600_000
    with pytest.raises(DownloadError, match="cannot be downloaded: the connection broke off"):
        get()
    (partial,) = downloads()
    have = partial.stat().st_size
    assert have == 600_000
    assert partial.read_bytes() == CONTENT[:have]
    server.cut_after = None
    assert get().read_bytes() == CONTENT
    assert server.requests == [None, f"bytes={have}-"]
    assert len(downloads()) == 1


@pytest.mark.timeout(20)
def test_a_server_that_sends_for_ever_is_left(server: Server, get: Callable[[], Path]) -> None:
    server.endless = True
    with pytest.raises(DownloadError, match="its sha256 differs"):
        get()
    assert downloads() == []


def test_what_a_server_compresses_does_not_grow(server: Server, get: Callable[[], Path]) -> None:
    server.content, server.compressed = bytes(40 << 20), True
    tracemalloc.start()
    try:
        with pytest.raises(DownloadError, match=r"ended after \d+ of 1024000 bytes"):
            get()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs links")
def test_a_beginning_that_is_a_link_is_not_written_through(
    server: Server, get: Callable[[], Path], tmp_path: Path
) -> None:
    server.cut_after = 0
    with pytest.raises(DownloadError):
        get()
    (partial,) = downloads()
    partial.unlink()
    (tmp_path / "precious").write_text("precious")
    partial.symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        get()
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="needs root")
def test_another_user_finds_what_is_in_a_shared_cache(
    server: Server, get: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GPTKIT_CACHE", "cache")
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    path = get()
    cached(cache_folder("x") / "y", lambda folder: (folder / "z").write_text("z") and None)
    os.seteuid(65534)
    try:
        assert get() == path
        assert cached(cache_folder("x") / "y", lambda folder: pytest.fail("built twice")).is_dir()
        assert (cache_folder("x") / "y" / "z").read_text() == "z"
    finally:
        os.seteuid(0)


def test_a_server_that_cannot_go_on_starts_again(server: Server, get: Callable[[], Path]) -> None:
    server.cut_after, server.ranges = 600_000, False
    with pytest.raises(DownloadError):
        get()
    server.cut_after = None
    assert get().read_bytes() == CONTENT


def test_a_beginning_that_was_damaged_does_no_lasting_harm(
    server: Server, get: Callable[[], Path]
) -> None:
    server.cut_after = 600_000
    with pytest.raises(DownloadError):
        get()
    server.cut_after = None
    (partial,) = downloads()
    for beginning in (b"?" * 1000, b"?" * SIZE, b"?" * (SIZE + 1)):
        partial.write_bytes(beginning)
        try:
            path = get()
        except DownloadError:
            path = get()  # a second try starts from nothing
        assert path.read_bytes() == CONTENT
        path.unlink()


def test_a_file_that_ends_early_is_refused(server: Server, get: Callable[[], Path]) -> None:
    server.content = CONTENT[:1000]
    with pytest.raises(DownloadError, match="ended after 1000 of 1024000 bytes"):
        get()
    assert not [path for path in downloads() if path.name.endswith("text.txt")]


def test_http_errors_are_told(server: Server) -> None:
    url = server.url.replace("folder/text.txt", "missing")
    with pytest.raises(DownloadError, match=r"/missing: cannot be downloaded: HTTP 404 ") as caught:
        fetch(url, sha256=SHA256, size=SIZE)
    assert downloads() == []
    assert caught.value.exit_code == 1


def test_without_a_network_the_error_says_what_else_can_be_done(server: Server) -> None:
    with Server() as other:
        url = other.url  # nobody listens there once it is closed
    with pytest.raises(DownloadError, match="cannot be downloaded: no answer") as caught:
        fetch(url, sha256=SHA256, size=SIZE, hint='or set path = "my.txt"')
    hint = caught.value.hint or ""
    assert "check the network and try again" in hint
    assert str(cache_folder("downloads")) in hint
    assert hint.endswith('or set path = "my.txt"')


def test_several_downloads_of_one_file_at_the_same_time(
    server: Server, get: Callable[[], Path]
) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = {future.result() for future in [pool.submit(get) for _ in range(4)]}
    (path,) = paths
    assert path.read_bytes() == CONTENT
    assert downloads() == [path]


# cached


def test_a_folder_is_built_once(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "a").write_text("first")

    target = tmp_path / "deep" / "er"
    assert cached(target, build) == target
    assert cached(target, lambda folder: pytest.fail("built twice")) == target
    assert [path.name for path in target.iterdir()] == ["a"]
    assert [path.name for path in target.parent.iterdir()] == ["er"]


def test_a_folder_that_does_not_fit_is_built_anew(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "a").write_text("right")

    def fits(folder: Path) -> bool:
        return (folder / "a").read_text() == "right"

    target = cached(tmp_path / "target", build, fits=fits)
    (target / "left").touch()
    assert cached(target, lambda folder: pytest.fail("built twice"), fits=fits) == target
    (target / "a").write_text("wrong")
    assert [path.name for path in cached(target, build, fits=fits).iterdir()] == ["a"]
    (target / "a").write_bytes(b"\xff")
    assert (cached(target, build, fits=fits) / "a").read_text() == "right"
    (target / "a").unlink()
    assert (cached(target, build, fits=fits) / "a").read_text() == "right"


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_a_build_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise error("no more")

    with pytest.raises(error, match="no more"):
        cached(tmp_path / "target", build)
    assert list(tmp_path.iterdir()) == []


def test_of_two_builders_the_first_to_finish_wins(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def slow(folder: Path) -> None:
        (folder / "who").write_text("slow")
        cached(target, lambda other: (other / "who").write_text("fast") and None)

    assert (cached(target, slow) / "who").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [target]


def test_a_build_that_is_killed_leaves_no_half_folder(tmp_path: Path) -> None:
    program = """
import os, pathlib, sys
from gptkit.data.download import cached

def build(folder):
    (folder / "half").write_text("half")
    os.kill(os.getpid(), 9)

cached(pathlib.Path(sys.argv[1]), build)
"""
    target = tmp_path / "target"
    killed = subprocess.run([sys.executable, "-c", program, str(target)], check=False)
    assert killed.returncode == -9
    assert not target.exists()
    assert cached(target, lambda folder: (folder / "whole").write_text("whole") and None) == target
    assert [path.name for path in target.iterdir()] == ["whole"]


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path))
    assert cache_folder("x") == tmp_path / "x"
    monkeypatch.delenv("GPTKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder("x").name == "x"
    assert "gptkit" in cache_folder("x").parts


def test_what_a_killed_builder_left_goes_after_a_day(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".target.old.tmp", tmp_path / ".target.fresh.tmp"
    for left in (old, fresh):
        left.mkdir()
        (left / "half").write_text("")
    for path in (old / "half", old):
        os.utime(path, (0, 0))
    cached(tmp_path / "target", lambda folder: None)
    assert fresh.exists()  # somebody may be at it
    assert not old.exists()
