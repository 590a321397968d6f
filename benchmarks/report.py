"""Results as Markdown: a table, the machine it was measured on, and its section in a file."""

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

PREAMBLE = """# Benchmarks

Written by `python -m benchmarks`; a section stays as it is until its benchmark runs again. Cells
show the median, and in brackets the lowest and highest of the repeats.
"""
PACKAGES = ("torch", "transformers", "gptkit")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Table:
    """Rows of text cells below a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The first column is left-aligned; the others, numbers, are right-aligned."""
        rule = [":--", *["--:"] * (len(self.header) - 1)]
        return "\n".join(f"| {' | '.join(line)} |" for line in (self.header, rule, *self.rows))


@dataclass(frozen=True)
class Result:
    """What a benchmark found."""

    title: str
    """What was measured, in a few words."""
    table: Table
    meaning: str
    """One sentence, made from the figures."""
    method: str
    """How it was measured: repeats, settings, formulas."""


def section(name: str, result: Result, *, command: str, bystanders: float) -> str:
    """A benchmark's section.

    Args:
        name: the benchmark's.
        result: its figures.
        command: what measures them again.
        bystanders: share of the CPU that other processes took meanwhile.
    """
    facts = f"{_now()}. {_machine()}; other processes took {bystanders:.0%} of its CPU meanwhile."
    parts = [
        f"## {name}: {result.title}",
        f"{facts} {_versions()}.",
        f"    {command}",
        result.table.markdown(),
        f"**{result.meaning}** {result.method}",
    ]
    return "\n\n".join(parts) + "\n"


def update(path: Path, name: str, text: str) -> None:
    """Write a section into a results file; it replaces the benchmark's earlier one."""
    old = path.read_text(encoding="utf-8") if path.exists() else PREAMBLE
    preamble, *sections = re.split(r"(?m)^(?=## )", old)
    by_name = {part[3:].partition(":")[0]: part.rstrip() + "\n" for part in sections}
    by_name[name] = text
    path.write_text("\n".join([preamble.rstrip() + "\n", *by_name.values()]), encoding="utf-8")


def _now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{_cpu()}, {cores} cores, {memory:.0f} GiB of memory, {_gpu()}"


def _cpu() -> str:
    """The processor's name and, since a virtual one is often nameless, its model number."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"(?m)^(.+?)\s*: (.+)$", text))
    name = fields.get("model name", platform.machine())
    numbers = [fields.get(key, "?") for key in ("cpu family", "model", "stepping")]
    return f"{name} (family {numbers[0]}, model {numbers[1]}, stepping {numbers[2]})"


def _gpu() -> str:
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return ", ".join(_output(query).splitlines()) or "no GPU"


def _versions() -> str:
    commit = _output(["git", "describe", "--always", "--dirty=, changed", "--exclude=*"])
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return f"Python {platform.python_version()}, {packages}{commit and f' ({commit})'}"


def _output(command: Sequence[str]) -> str:
    """What a command prints; empty if it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
