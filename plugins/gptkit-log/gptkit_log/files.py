"""The files that the log writes into a run folder: metrics.jsonl and the samples."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptkit.plugin import RunError, write_atomically


class MetricsFile:
    """One JSON object per line, appended as training goes.

    Records after `step` are dropped: a resumed run repeats these steps.

    Args:
        path: created if missing.
        step: the step that training continues from.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self._path = path
        records = records_until(path.read_bytes(), step) if path.exists() else []
        self.elapsed: float = max((record.get("elapsed", 0.0) for record in records), default=0.0)
        """Seconds of training until the last record."""
        write_file(path, b"".join(json_line(record) for record in records))
        # Unbuffered: every line is written at once, so that closing has nothing to write.
        self._file = path.open("ab", buffering=0)

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


def records_until(content: bytes, step: int) -> list[dict[str, Any]]:
    """The records up to and including `step`; damaged lines are left out."""
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


def write_file(path: Path, contents: bytes) -> None:
    """Write a file, complete or not at all; its folder is made if it is missing.

    Raises:
        RunError: it cannot be written, e.g. on a full disk.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
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
