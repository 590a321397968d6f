"""`download` from a real server on this machine that stalls, drops, lies and changes its file."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from gptkit.data import transfer
from gptkit.data.transfer import download
from gptkit.errors import DownloadError

CONTENT = os.urandom(3 << 20)
SIZE = len(CONTENT)
HALF = SIZE // 2


class Server(ThreadingHTTPServer):
    """Serves `content` with Range and If-Range; each request takes the next of `faults`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.version: tuple[str, str] | None = ("ETag", '"1"')
        self.ranges = True
        self.faults: list[Callable[[Handler], object]] = []
        self.requests: list[str | None] = []
        """The Range of each one."""
        self.closing = Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/shards/a.jsonl?token=1/2"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(self.headers["Range"])
        if server.faults:
            server.faults.pop(0)(self)
        else:
            self.answer()

    def answer(self, *, sent: int = SIZE, length: int | None = None, **headers: str) -> None:
        """Answer as asked, but for the number of bytes sent, and for wrong headers."""
        server, wanted = self.server, self.headers["Range"]
        start = int(wanted[6:-1]) if wanted and server.ranges else 0
        if self.headers["If-Range"] != (server.version or ("", None))[1]:
            start = 0
        body = server.content[start:]
        right = {"Content-Length": str(len(body) if length is None else length)}
        if server.version:
            right |= dict([server.version])
        if start:
            right["Content-Range"] = (
                f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
            )
        self.send_response(206 if start else 200)
        for name, value in (right | {k.replace("_", "-"): v for k, v in headers.items()}).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:sent])

    def log_message(self, *arguments: object) -> None:
        pass


def drop(handler: Handler) -> None:
    handler.answer(sent=HALF)


def stall(handler: Handler) -> None:
    handler.answer(sent=HALF)
    handler.wfile.flush()
    handler.server.closing.wait()


def trickle(handler: Handler) -> None:
    """Send half of it, and then a byte again and again."""
    handler.answer(sent=HALF)
    with suppress(ConnectionError):
        for byte in handler.server.content[HALF:]:
            handler.wfile.write(bytes([byte]))
            if handler.server.closing.wait(0.05):
                break


def send_chunks(handler: Handler) -> None:
    """Send more than the length says, as a chunked encoding can."""
    handler.answer(sent=0, length=10, Transfer_Encoding="chunked")
    for start in range(0, 40, 5):
        handler.wfile.write(b"5\r\n" + handler.server.content[start : start + 5] + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")


def say_nothing(handler: Handler) -> None:
    handler.server.closing.wait()


def status(code: int) -> Callable[[Handler], None]:
    return lambda handler: handler.send_error(code)


def after(
    change: Callable[[Server], object], then: Callable[[Handler], None]
) -> Callable[..., None]:
    """A request before which the server changes."""

    def answer(handler: Handler) -> None:
        change(handler.server)
        then(handler)

    return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(transfer, "TIMEOUT", 0.3)
    monkeypatch.setattr(transfer, "PAUSES", (0.0, 0.01, 0.02))
    with Server() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """A path in a folder in which nothing else is left."""
    yield tmp_path / "a.jsonl"
    assert {path.name for path in tmp_path.iterdir()} <= {"a.jsonl"}


REST = f"bytes={HALF}-"


@pytest.mark.parametrize(
    ("faults", "requests"),
    [
        ([], [None]),
        ([drop], [None, REST]),
        ([stall], [None, REST]),
        ([send_chunks], [None, None]),
        ([say_nothing], [None, None]),
        ([status(500), status(503), status(429)], [None] * 4),
        ([drop, status(503), status(502)], [None, REST, None, None]),
        ([drop, say_nothing], [None, REST, REST]),
        ([lambda handler: handler.connection.close()], [None, None]),
    ],
    ids=[
        "whole",
        "drop",
        "stall",
        "chunks",
        "silence",
        "busy",
        "drop-busy",
        "drop-silence",
        "closed",
    ],
)
def test_a_download_is_taken_up_again(
    server: Server, target: Path, faults: list[Callable[..., None]], requests: list[str | None]
) -> None:
    server.faults = [*faults]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == requests


@pytest.mark.parametrize("version", [None, ("ETag", 'W/"1"')])
def test_what_has_no_version_begins_anew(
    server: Server, target: Path, version: tuple[str, str] | None
) -> None:
    server.version, server.faults = version, [drop]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == [None, None]


def test_a_date_is_a_version_too(server: Server, target: Path) -> None:
    server.version, server.faults = ("Last-Modified", formatdate(1e9, usegmt=True)), [drop]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == [None, REST]


def test_a_server_without_ranges_begins_anew(server: Server, target: Path) -> None:
    server.ranges, server.faults = False, [drop]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == [None, REST]


@pytest.mark.parametrize("new", [CONTENT[::-1], CONTENT[:1000], CONTENT * 2, CONTENT[:HALF]])
def test_a_file_that_changes_meanwhile_is_the_new_one(
    server: Server, target: Path, new: bytes
) -> None:
    def change(server: Server) -> None:
        server.content, server.version = new, ("ETag", '"2"')

    sizes: list[int] = []
    server.faults = [drop, after(change, lambda handler: handler.answer(sent=len(new)))]
    download(server.url, target, expect=sizes.append)
    assert target.read_bytes() == new
    assert sizes == [SIZE, len(new)]


@pytest.mark.parametrize(
    "lie",
    [
        {"Content_Range": f"bytes {HALF}-{SIZE}/{SIZE + 1}"},
        {"Content_Range": f"bytes {HALF + 1}-{SIZE - 1}/{SIZE}"},
        {"Content_Range": "nonsense"},
        {"Content_Range": ""},
        {"ETag": '"2"'},
    ],
)
def test_a_part_that_was_not_asked_for_is_not_taken(
    server: Server, target: Path, lie: dict[str, Any]
) -> None:
    server.faults = [drop, lambda handler: handler.answer(**lie)]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == [None, REST, None]


def test_a_file_that_became_shorter_begins_anew(server: Server, target: Path) -> None:
    server.faults = [drop, status(416)]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == [None, REST, None]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda handler: handler.answer(length=SIZE + 9), f"after {SIZE:,} of {SIZE + 9:,} bytes"),
        (lambda handler: handler.answer(sent=0), f"after 0 of {SIZE:,} bytes"),
        (say_nothing, "no answer (offline?)"),
        (send_chunks, "more came than the 10 bytes that the server told"),
        (status(503), "HTTP 503 Service Unavailable"),
    ],
)
def test_a_fault_that_lasts_is_told(
    server: Server, target: Path, fault: Callable[..., None], said: str
) -> None:
    server.ranges, server.faults = False, [fault] * 9
    with pytest.raises(DownloadError) as caught:
        download(server.url, target, hint="or else")
    assert str(caught.value).startswith(f"{server.url}: cannot be downloaded in 4 tries: ")
    assert said in str(caught.value)
    assert caught.value.hint == "check the network and try again later; or else"
    assert not target.exists()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(404), "HTTP 404 Not Found"),
        (status(403), "HTTP 403 Forbidden"),
        (lambda handler: handler.answer(Content_Length=""), "does not say how long it is"),
        (lambda handler: handler.answer(Content_Length="-1"), "does not say how long it is"),
        (lambda handler: handler.answer(Content_Encoding="gzip"), "compresses it (gzip) unasked"),
    ],
)
def test_what_will_never_come_is_tried_once(
    server: Server, target: Path, fault: Callable[..., None], said: str
) -> None:
    server.faults = [fault] * 9
    with pytest.raises(DownloadError) as caught:
        download(server.url, target)
    assert said in str(caught.value)
    assert "tries" not in str(caught.value)
    assert len(server.requests) == 1
    assert not target.exists()


def test_what_is_stored_compressed_may_be_told_so(server: Server, target: Path) -> None:
    server.faults = [lambda handler: handler.answer(Content_Encoding="gzip")]
    download(server.url.replace("a.jsonl", "a.jsonl.gz"), target)
    assert target.read_bytes() == CONTENT


def test_a_server_that_trickles_is_left(server: Server, target: Path) -> None:
    server.faults = [trickle]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    first, second = server.requests
    assert first is None
    assert second is not None
    assert HALF < int(second[6:-1]) < HALF + 100


def test_each_further_megabyte_earns_further_tries(server: Server, target: Path) -> None:
    server.content = CONTENT * 4
    server.faults = [lambda handler: handler.answer(sent=1 << 20)] * 11
    download(server.url, target)
    assert target.read_bytes() == CONTENT * 4
    assert len(server.requests) == 12


def test_redirects_are_followed_and_may_loop(server: Server, target: Path) -> None:
    def redirect(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", "/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.faults = [redirect, drop, redirect]
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == [None, None, REST, REST]
    server.faults = [redirect] * 99
    with pytest.raises(DownloadError, match="redirects"):
        download(server.url, target)


@pytest.mark.parametrize("url", ["http://", "http://[x/a", "ftp://127.0.0.1/a", "no address"])
def test_what_is_no_address_is_told(target: Path, url: str) -> None:
    with pytest.raises(DownloadError, match="cannot be downloaded: "):
        download(url, target)


def test_an_empty_file_is_a_file(server: Server, target: Path) -> None:
    server.content = b""
    download(server.url, target)
    assert target.read_bytes() == b""


def test_a_file_that_is_there_is_replaced_when_the_new_one_is_whole(
    server: Server, target: Path
) -> None:
    target.write_text("old")
    server.faults = [status(404)]
    with pytest.raises(DownloadError):
        download(server.url, target)
    assert target.read_text() == "old"
    download(server.url, target)
    assert target.read_bytes() == CONTENT


def test_what_expects_may_refuse(server: Server, target: Path) -> None:
    def refuse(size: int) -> None:
        raise OSError(errno.ENOSPC, f"no room for {size}")

    with pytest.raises(OSError, match=f"no room for {SIZE}"):
        download(server.url, target, expect=refuse)
    assert not target.exists()


def test_a_killed_download_leaves_no_half_file(server: Server, tmp_path: Path) -> None:
    program = "import sys; from gptkit.plugin import download; from pathlib import Path; "
    program += "download(sys.argv[1], Path(sys.argv[2]))"
    server.faults = [stall]
    target = tmp_path / "a"
    command = [sys.executable, "-c", program, server.url, str(target)]
    with subprocess.Popen(command) as process:
        while not any(path.stat().st_size == HALF for path in tmp_path.rglob("a")):
            assert process.poll() is None
        process.kill()
    assert not target.exists()
    download(server.url, target)
    assert target.read_bytes() == CONTENT
