"""Temporary names beside the final ones: a file or a folder appears whole, or not at all."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

DAY = 86_400.0  # seconds


@contextmanager
def staged(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a path for a new file or folder, which is renamed to `target` when the block ends.

    The path is in a temporary folder beside `target` and has the same last part. If the block
    raises, `target` stays as it was.

    Args:
        target: the final path.
        replace: replace what is at `target`; otherwise a folder that exists there at the end stays.

    Raises:
        OSError: the folder around `target` is missing or not writable, or the disk is full.
    """
    target = target.absolute()
    staging = unused_name(target)
    try:
        staging.mkdir()  # in here, since a signal may come right after it
        yield staging / target.name
        for path in (*staging.rglob("*"), staging):
            sync(path)
        if replace or not target.is_dir():
            _put(staging / target.name, target, old=staging / "old")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def recover(target: Path) -> None:
    """Clean up after a killed `staged(target)`. No other process may be writing there.

    If it was killed between its two renames, `target` gets its old contents back.
    """
    for staging in _stagings(target):
        if (staging / "old").exists() and not target.exists():
            (staging / "old").rename(target)
        shutil.rmtree(staging, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Delete temporary folders of `staged` in a folder that did not change for a day."""
    for staging in folder.glob(".*.tmp"):
        with suppress(OSError):  # another process may finish at this moment
            changed = max(path.lstat().st_mtime for path in (staging, *staging.rglob("*")))
            if staging.is_dir() and time.time() - changed > DAY:
                shutil.rmtree(staging)


def remove_temporaries(folder: Path) -> None:
    """Delete what killed writers left in a folder and below. No other process may write there."""
    for path in list(folder.rglob(".*.tmp")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def unused_name(target: Path) -> Path:
    """An unused hidden path beside `target`, a different one for each writer.

    Not by mkstemp or mkdtemp, whose files and folders only their owner can read.
    """
    return Path(tempfile.mktemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    if os.name == "nt":  # Windows cannot sync folders, nor files that are open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(new: Path, target: Path, *, old: Path) -> None:
    """Rename `new` to `target`; what was there moves to `old`, or back if that fails."""
    try:
        if target.is_dir():  # a folder cannot replace another one in a single step
            target.rename(old)
        new.replace(target)
    except BaseException:  # also a signal between the two
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    sync(target.parent)


def _stagings(target: Path) -> Iterator[Path]:
    for path in target.absolute().parent.glob(f".{escape(target.name)}.*.tmp"):
        if path.is_dir() and not path.is_symlink():
            yield path
