"""Memory: what this process may use, and the error where it is too little."""

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gptkit.errors import RunError

CGROUPS = {
    "": (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    "memory": (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
    ),
}
"""By controller ("" in version 2): where the control groups are, and in the folder of each the
files with its limit in bytes, or "max", and with what it has taken."""
OWN_CGROUPS = Path("/proc/self/cgroup")
TOO_LITTLE = re.compile(
    "out of memory|not enough memory|allocate memory|bad_?alloc|size calculation overflowed",
    re.IGNORECASE,
)
"""What a RuntimeError of torch or onnxruntime says then."""


def glibc() -> ctypes.CDLL | None:
    """The C library of this process, if it is that of GNU."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def give_back() -> None:
    """Give memory that is free back to the system; glibc keeps some for the next allocation."""
    if (libc := glibc()) is not None:
        libc.malloc_trim(0)


def total() -> int | None:
    """Bytes of memory that this process may use at most; None if that cannot be known."""
    found = []
    with suppress(AttributeError, ValueError, OSError):  # not on Windows
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for folder, limit, _ in _cgroups():
        with suppress(OSError, ValueError):
            found.append(int((folder / limit).read_bytes()))
    with suppress(ImportError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        found += [soft] if soft != resource.RLIM_INFINITY else []
    return min(found, default=None)


def peak() -> int | None:
    """Bytes of the most resident memory that this process had; None if that cannot be known."""
    with suppress(OSError):  # `getrusage` would count the program that became this one, too
        if found := re.search(rb"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_bytes()):
            return int(found[1]) * 1024
    with suppress(ImportError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return None


def free() -> int | None:
    """Bytes of memory that this process may still take; None if that cannot be known."""
    found = []
    with suppress(OSError, KeyError):
        found.append(_numbers("/proc/meminfo")["MemAvailable:"] << 10)
    for folder, limit, taken in _cgroups():
        with suppress(OSError, KeyError, ValueError):
            room = int((folder / limit).read_bytes()) - int((folder / taken).read_bytes())
            stat = _numbers(folder / "memory.stat")  # "total": with the groups below, in version 1
            found.append(room + stat.get("total_inactive_file", stat["inactive_file"]))
    with suppress(ImportError, OSError, KeyError):
        import resource

        own = _numbers("/proc/self/status")
        for kind, what in ((resource.RLIMIT_AS, "VmPeak:"), (resource.RLIMIT_DATA, "VmData:")):
            soft, _ = resource.getrlimit(kind)
            found += [soft - (own[what] << 10)] if soft != resource.RLIM_INFINITY else []
    return min(found, default=None)


def forget_peak() -> None:
    """Let `peak` begin again with what is resident now; only Linux can do that."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def told(size: float) -> str:
    """A number of bytes in words, such as "1.5 GB"."""
    units = ["bytes", "kB", "MB", "GB", "TB", "PB", "EB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size:,.0f} {units[0]}" if size >= 100 else f"{size:.3g} {units[0]}"


@dataclass(frozen=True)
class Need:
    """The memory that something needs, and what makes it less."""

    what: str
    """What needs it, such as "this training"."""
    hint: str
    """Which options make it less."""
    size: int | None = None
    """Bytes that it needs at least; None if that is not known."""

    def check(self, there: int | None) -> None:
        """Refuse what certainly does not fit, before any of it is allocated.

        Args:
            there: bytes that there are in all; None if that is not known.

        Raises:
            RunError: it does not fit.
        """
        if fault := self.fault(there):
            raise RunError(fault, hint=self.hint)

    def fault(self, there: int | None) -> str | None:
        """That it does not fit, in words; None if it may."""
        if self.size is None or there is None or self.size <= there:
            return None
        return f"{self.what} needs more than {told(self.size)} of memory; there are {told(there)}"

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Say in two lines that memory is full, whoever notices it: Python, torch or a GPU.

        Raises:
            RunError: memory is full.
        """
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not TOO_LITTLE.search(str(error)):
                raise
            least = "" if self.size is None else f", which needs more than {told(self.size)}"
            full = RunError(f"too little memory for {self.what}{least}", hint=self.hint)
            for note in getattr(error, "__notes__", ()):  # which step is saved, for example
                full.add_note(note)
            raise full from error


def _cgroups() -> Iterator[tuple[Path, str, str]]:
    """The folders of the control groups that this process is in, with the names of their files.

    A limit holds for all groups below: a container's, systemd's or Slurm's.
    """
    inner = dict.fromkeys(CGROUPS, "/")
    with suppress(OSError, ValueError):
        for line in OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            inner |= {name: path for name in controllers.split(",") if name in inner}
    for controller, (root, limit, taken) in CGROUPS.items():
        folder = root / inner[controller].lstrip("/")
        for each in (folder, *folder.parents):
            if each.is_relative_to(root):
                yield each, limit, taken


def _numbers(path: str | Path) -> dict[str, int]:
    """The numbers of a file whose lines are names and numbers."""
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
