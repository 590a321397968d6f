"""One process at a time; the others say that they wait."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gptkit.plugin import RunError, lock, note


@contextmanager
def alone(path: Path, work: str) -> Iterator[None]:
    """Hold a lock; say so if another process must end first.

    Args:
        path: the lock file.
        work: what the other process does, such as "encodes books".
    """
    busy = RunError(f"{path}: is held")
    try:
        with lock(path, busy=busy):
            yield
            return
    except RunError as error:
        if error is not busy:
            raise
    note(f"another process {work}: waiting for it")
    with lock(path):
        yield
