"""The files of a run that the log writes: metrics.jsonl and the samples. No file is ever half."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsFile:
    """One JSON object per line, appended as training goes.

    What an interrupted run wrote after its last checkpoint is dropped: the resumed run repeats it.

    Args:
        path: created if missing.
        step: the step that training continues from.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        records = records_until(path.read_bytes(), step) if path.exists() else []
        self.elapsed: float = max((record.get("elapsed", 0.0) for record in records), default=0.0)
        """Seconds of training that the file's records tell of."""
        write_atomically(path, b"".join(json_line(record) for record in records))
        # Unbuffered: a line is in the file once written, and closing has nothing left to fail at.
        self._file = path.open("ab", buffering=0)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
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
        if isinstance(record, dict) and record.get("step", math.inf) <= step:
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
    """Write a file that is complete or absent, whenever the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
