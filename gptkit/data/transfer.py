"""Files over HTTP whose digest nobody knows: whole by the server's word, resumed, tried again."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from gptkit.data.progress import note, progress
from gptkit.errors import DownloadError
from gptkit.files import CHUNK
from gptkit.staging import staged

TIMEOUT = 30.0
"""Seconds without an answer, or without another byte, after which a try has failed."""
LEAST = 1 << 15
"""Bytes that must come in each `TIMEOUT`: a server that sends fewer would take days."""
PAUSES = (1.0, 3.0, 10.0, 30.0)
"""Seconds before each further try; one that brings another megabyte begins the row anew."""
PARTIAL = 206  # the HTTP status of a part
PASSING = (408, 416, 425, 429, 500, 502, 503, 504)
"""HTTP errors after which it is worth to try again; all others are final."""
COMPRESSED = {"gzip": ".gz", "x-gzip": ".gz", "zstd": ".zst"}
"""What a server may call a file that is stored compressed, and how such a file's name ends."""


def download(
    url: str,
    target: Path,
    *,
    expect: Callable[[int], object] | None = None,
    hint: str | None = None,
) -> None:
    """Download a file whose digest and size are not known; it is complete or absent.

    It is complete if it has as many bytes as the server says. If the connection breaks off or
    stalls, a further try continues where the last one stopped, if the server can do that and still
    has the same version of the file; otherwise it begins anew.

    Args:
        url: an http or https address.
        target: where the file goes; one that is there is replaced.
        expect: called with the size in bytes before anything of that size is written.
        hint: what else the user can do.

    Raises:
        DownloadError: no network, an HTTP error, or a server that never sends the whole file.
        OSError: the file cannot be written.
    """
    with staged(target) as new:
        new.touch()
        _Transfer(url, new, expect or (lambda size: None), hint).run()


@contextmanager
def append_to(partial: Path, have: int) -> Iterator[BinaryIO]:
    """Open a file that keeps its first bytes; never through a link."""
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(partial, flags, 0o666), "wb") as file:
        file.truncate(have)
        file.seek(have)
        yield file


def read_chunks(response: Any) -> Iterator[bytes]:
    """The bytes as they are sent: what is compressed does not grow.

    Raises:
        urllib3.exceptions.TimeoutError: nothing came in `TIMEOUT`, or less than `LEAST`.
    """
    from urllib3.exceptions import TimeoutError as TooSlowError

    begin, came = time.monotonic(), 0
    while chunk := response.raw.read1(CHUNK, decode_content=False):
        yield chunk
        came += len(chunk)
        if time.monotonic() - begin > TIMEOUT:
            if came < LEAST:
                raise TooSlowError(f"only {came:,} bytes came in {TIMEOUT:g} s")
            begin, came = time.monotonic(), 0


def reason(error: Exception) -> str:
    """Why a request failed, in a few words."""
    import requests
    from urllib3.exceptions import HTTPError

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.exceptions.SSLError):
        return "no secure connection (is its certificate trusted here?)"
    if isinstance(error, requests.ConnectionError | requests.Timeout):
        return "no answer (offline?)"
    if isinstance(error, HTTPError):
        return "the connection broke off; what came is kept"
    return str(error)


class _BrokenOff(Exception):  # noqa: N818 - of a try, not of the download
    """What broke a try off; a further one may succeed."""


class _Transfer:
    """One file on its way."""

    def __init__(
        self, url: str, partial: Path, expect: Callable[[int], object], hint: str | None
    ) -> None:
        self.url, self.partial, self.expect, self.hint = url, partial, expect, hint
        self.have = self.size = 0
        self.version: str | None = None
        """An ETag or a date that names the version of the file; None if it cannot be resumed."""

    def run(self) -> None:
        """Try until the file is complete."""
        most, pauses = 0, list(PAUSES)
        while fault := self._try():
            if self.have >= most + CHUNK:
                most, pauses = self.have, list(PAUSES)
            if not pauses:
                tries = f" in {len(PAUSES) + 1} tries"
                raise self._failure(fault, "check the network and try again later", tries)
            note(f"{self.url}: {fault}; trying again in {pauses[0]:g} s")
            time.sleep(pauses.pop(0))

    def _try(self) -> str | None:
        """What broke this try off; None if the file is complete."""
        import requests
        from urllib3.exceptions import HTTPError
        from urllib3.exceptions import TimeoutError as TooSlowError

        try:
            self._receive()
        except _BrokenOff as error:
            return str(error)
        except TooSlowError:
            return f"the server sends nothing any more, or hardly anything, {self._so_far}"
        except HTTPError:
            return f"the connection broke off {self._so_far}"
        except (requests.ConnectionError, requests.Timeout) as error:
            return reason(error)
        except requests.RequestException as error:
            raise self._failure(reason(error)) from error
        return None

    @property
    def _so_far(self) -> str:
        return f"after {self.have:,} of {self.size:,} bytes"

    def _receive(self) -> None:
        import requests

        headers = {"Accept-Encoding": "identity"}
        if self.have and self.version:
            headers |= {"Range": f"bytes={self.have}-", "If-Range": self.version}
        with requests.get(self.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            self._begin_or_continue(response)
            name = urlsplit(self.url).path.rsplit("/", 1)[-1]
            with (
                append_to(self.partial, self.have) as file,
                progress(f"downloading {name}", total=self.size) as advance,
            ):
                advance(self.have)
                for chunk in read_chunks(response):
                    self._check_size(len(chunk))
                    file.write(chunk)
                    self.have += len(chunk)
                    advance(len(chunk))
        if self.have < self.size:
            raise _BrokenOff(f"the connection ended {self._so_far}")

    def _check_size(self, more: int) -> None:
        """Write nothing beyond the size: with a chunked encoding more may come than was told."""
        if self.have + more > self.size:
            self.version = None
            raise _BrokenOff(f"more came than the {self.size:,} bytes that the server told")

    def _begin_or_continue(self, response: Any) -> None:
        if response.status_code in PASSING:
            self.version = None  # 416: it has become shorter
            raise _BrokenOff(f"HTTP {response.status_code} {response.reason}")
        response.raise_for_status()
        if response.status_code != PARTIAL:
            self._begin(response)
            return
        rest = f"bytes {self.have}-{self.size - 1}/{self.size}"
        if response.headers.get("Content-Range") != rest or _version(response) != self.version:
            self.version = None
            raise _BrokenOff("the server sent another part than the one that is missing")

    def _begin(self, response: Any) -> None:
        """Take the size and the version of a file, whose contents follow from the beginning."""
        length = response.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,18}", length, re.ASCII):
            raise self._failure("the server does not say how long it is")
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        stored = urlsplit(self.url).path.endswith(COMPRESSED.get(encoding, "/"))
        if encoding != "identity" and not stored:
            raise self._failure(f"the server compresses it ({encoding}) unasked")
        self.have, self.size, self.version = 0, int(length), _version(response)
        os.truncate(self.partial, 0)
        self.expect(self.size)

    def _failure(
        self, fault: str, move: str = "check the address", tries: str = ""
    ) -> DownloadError:
        hint = f"{move}; {self.hint}" if self.hint else move
        return DownloadError(f"{self.url}: cannot be downloaded{tries}: {fault}", hint=hint)


def _version(response: Any) -> str | None:
    """What names the version of a file for `If-Range`, which a weak ETag cannot do."""
    etag: str | None = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    date: str | None = response.headers.get("Last-Modified")
    return date
