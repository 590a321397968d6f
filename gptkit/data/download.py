"""Downloads and caches on disk, for plugins; written atomically."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from gptkit.data.progress import progress
from gptkit.data.transfer import append_to, read_chunks, reason
from gptkit.errors import CacheError, DownloadError
from gptkit.files import digest, lock
from gptkit.staging import remove_abandoned, staged


def cache_folder(name: str) -> Path:
    """The folder for a plugin's derived files, in `$GPTKIT_CACHE` or the user's cache folder."""
    root = os.environ.get("GPTKIT_CACHE")
    return (Path(root) if root else user_cache_path("gptkit", appauthor=False)) / name


def cached(
    folder: Path, build: Callable[[Path], None], *, fits: Callable[[Path], bool] | None = None
) -> Path:
    """Build `folder` atomically, by `build(temporary folder)`, unless it exists; return it.

    Two processes may build at the same time; the first to finish wins.

    Args:
        folder: the complete folder, afterwards.
        build: fills an empty folder.
        fits: whether a folder that is there may be used; if not, or if it raises OSError or
            ValueError, it is built anew. Without it every folder is used.
    """
    if folder.is_dir():
        if fits is None or _fits(folder, fits):
            return folder
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder.parent)
    with staged(folder, replace=False) as new:
        new.mkdir()
        build(new)
    return folder


@contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError into a CacheError, a DataError that names the cache, not the data."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"{folder}: the cache cannot be written: {error.strerror or error}",
            hint="set the environment variable GPTKIT_CACHE to a folder that can be written",
        ) from error


def fetch(url: str, *, sha256: str, size: int, hint: str | None = None) -> Path:
    """Download a file once; later calls find it in the cache.

    An interrupted download continues where it stopped. A file enters the cache only if its checksum
    is right.

    Args:
        url: an http or https address.
        sha256: the file's digest in hex.
        size: its length in bytes.
        hint: what else the user can do without a network.

    Raises:
        DownloadError: no network, an HTTP error, or a wrong size or checksum.
    """
    import requests  # imported here and below, so that only a download pays for it
    from urllib3.exceptions import HTTPError

    folder = cache_folder("downloads")
    target = folder / f"{sha256[:12]}-{url.rsplit('/', 1)[-1]}"
    partial = target.with_name(target.name + ".part")
    advice = f"or put the file at {target}" + (f"; {hint}" if hint else "")
    if _is_there(target, sha256):  # also in another user's cache, where nothing can be written
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / f".{target.name}.lock"):  # a second process waits, then finds the file
        if _is_there(target, sha256):
            return target
        try:
            _download(url, partial, size)
        except (requests.RequestException, HTTPError) as error:
            raise DownloadError(
                f"{url}: cannot be downloaded: {reason(error)}",
                hint=f"check the network and try again, {advice}",
            ) from error
        if digest(partial) != sha256:
            partial.unlink()
            raise DownloadError(
                f"{url}: not the expected file: its sha256 differs",
                hint=f"try again later, {advice}",
            )
        partial.replace(target)
    return target


def _fits(folder: Path, fits: Callable[[Path], bool]) -> bool:
    try:
        return fits(folder)
    except (OSError, ValueError):
        return False


def _is_there(target: Path, sha256: str) -> bool:
    try:
        return digest(target) == sha256
    except OSError:
        return False


def _download(url: str, partial: Path, size: int) -> None:
    """Download `url` into `partial`, which may already hold its beginning.

    It ends soon after `size` bytes, whatever the server sends.
    """
    import requests

    have = partial.stat().st_size if partial.exists() else 0
    have = have if have < size else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            have = 0
        with (
            append_to(partial, have) as file,
            progress(f"downloading {url.rsplit('/', 1)[-1]}", total=size) as advance,
        ):
            advance(have)
            for chunk in read_chunks(response):  # what came is kept
                file.write(chunk)
                have += len(chunk)
                advance(len(chunk))
                if have > size:
                    break
    if have < size:
        raise requests.RequestException(f"the connection ended after {have} of {size} bytes")
