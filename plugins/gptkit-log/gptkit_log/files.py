"""The files that the log writes into a run folder: metrics.jsonl and the samples."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from gptkit.plugin import RunError, open_file, write_atomically

LINE_BYTES = 1 << 20
"""A longer line is damaged."""


class MetricsFile:
    """One JSON object per line, appended as training goes.

    Records after `step` are dropped: a resumed run repeats these steps.

    Args:
        path: created if missing.
        step: the step that training continues from.

    Raises:
        RunError: it cannot be written, or is no regular file.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self._path = path
        self.elapsed = 0.0
        """Seconds of training until the last record."""
        with writing(path):
            size, last = 0, b"\n"
            if path.exists():
                with open_file(path) as file:
                    size = size_until(file, step)
                    self.elapsed, last = _elapsed(file, size)
            # Unbuffered: every line is written at once, so that closing has nothing to write.
            self._file = path.open("ab", buffering=0)
            self._file.truncate(size)
            if last != b"\n":
                self._file.write(b"\n")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record.

        Raises:
            RunError: it cannot be written, e.g. on a full disk.
        """
        with writing(self._path):
            self._file.write(json_line(record))

    def close(self) -> None:
        """Close the file. It may be called twice."""
        self._file.close()


def size_until(file: BufferedReader, step: int) -> int:
    """The size of a file of records up to and including `step`, without damaged lines at its end.

    Steps ascend, so that it is found by halving: a large file is not read.
    """
    kept, dropped = 0, file.seek(0, os.SEEK_END)
    while kept < dropped:  # lines before `kept` are kept, those from `dropped` on are not
        middle = (kept + dropped) // 2
        file.seek(middle)
        if middle > kept:  # it may be within a line
            file.seek(middle - 1)
            _line(file)
        found = None
        while found is None and file.tell() < dropped:
            found = _step(_line(file))
        if found is None or found > step:
            dropped = middle
        else:
            kept = file.tell()
    return kept


def json_line(record: Mapping[str, Any]) -> bytes:
    """One line of strict JSON: a number that is not finite becomes null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(finite, allow_nan=False).encode() + b"\n"


def write_file(path: Path, contents: bytes) -> None:
    """Write a file, complete or not at all; its folder is made if it is missing.

    The folder around that one is not: it is the run folder, which may have been moved.

    Raises:
        RunError: it cannot be written, e.g. on a full disk.
    """
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, contents)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written: {error.strerror}",
            hint="make room on the disk, then gptkit resume continues from the last checkpoint",
        ) from error


def _elapsed(file: BufferedReader, size: int) -> tuple[float, bytes]:
    """The seconds in the last record before `size` that has them, and the byte before `size`."""
    file.seek(max(0, size - LINE_BYTES))
    tail = file.read(min(size, LINE_BYTES))
    for line in reversed(tail.splitlines()):
        found = _record(line).get("elapsed")
        if isinstance(found, float) and math.isfinite(found):
            return found, tail[-1:]
    return 0.0, tail[-1:] or b"\n"


def _line(file: BufferedReader) -> bytes:
    """The next line; nothing of one that is too long."""
    line = part = file.readline(LINE_BYTES)
    while len(part) == LINE_BYTES and not part.endswith(b"\n"):
        line, part = b"", file.readline(LINE_BYTES)
    return line


def _step(line: bytes) -> int | None:
    """The step of a record; None of a damaged line."""
    found = _record(line).get("step") if b'"step"' in line else None
    return found if isinstance(found, int) else None


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
