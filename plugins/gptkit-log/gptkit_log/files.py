"""The files of a run that the log writes: metrics.jsonl and the samples. No file is ever half."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptkit.plugin import RunError


class MetricsFile:
    """One JSON object per line, appended as training goes.

    What an interrupted run wrote after its last checkpoint is dropped: the resumed run repeats it.

    Args:
        path: created if missing.
        step: the step that training continues from.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self._path = path
        records = records_until(path.read_bytes(), step) if path.exists() else []
        self.elapsed: float = max((record.get("elapsed", 0.0) for record in records), default=0.0)
        """Seconds of training that the file's records tell of."""
        write_atomically(path, b"".join(json_line(record) for record in records))
        # Unbuffered: a line is in the file once written, and closing has nothing left to fail at.
        self._file = path.open("ab", buffering=0)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record.

        Raises:
            RunError: the disk is full, say.
        """
        with writing(self._path):
            self._file.write(json_line(record))

    def close(self) -> None:
        """Close the file; twice does no harm."""
        self._file.close()


def records_until(content: bytes, step: int) -> list[dict[str, Any]]:
    """The records up to and including `step`; lines torn by a crash are left out."""
    records = []
    for line in content.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        found = record.get("step") if isinstance(record, dict) else None
        if isinstance(found, int) and found <= step:
            records.append(record)
    return records


def json_line(record: Mapping[str, Any]) -> bytes:
    """One line of strict JSON: a number that is not finite becomes null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(finite, allow_nan=False).encode() + b"\n"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is complete or absent, whenever the process dies.

    Raises:
        RunError: the disk is full, say.
    """
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell the user which file cannot be written."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written: {error.strerror}",
            hint="make room, then gptkit resume goes on from the last checkpoint",
        ) from error
