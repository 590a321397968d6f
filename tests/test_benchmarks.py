"""The benchmarks run from the repository's root; what they write down; what stays as it was."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.parts import Parts, Row, take_parts

ROOT = Path(__file__).parents[1]
NAMES = [
    "start",
    "step",
    "step_memory",
    "plan",
    "time_to_loss",
    "memory",
    "long_run",
    "tokens",
    "encode",
    "read_ahead",
    "documents",
    "sample",
    "onnx",
    "imported",
    "facts",
    "gpu",
]
FIGURE = r"[\d,.]+ \([\d,.]+ to [\d,.]+\)"  # median (lowest to highest)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def sections(path: Path) -> dict[str, str]:
    """The text below every heading, by the benchmark's name."""
    parts = re.split(r"(?m)^## (\w+): ", path.read_text(encoding="utf-8"))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.slow
def test_a_run_replaces_its_own_section_alone(tmp_path: Path) -> None:
    out = tmp_path / "results.md"
    out.write_text("# Mine\n\n## start: old\n\nstale\n\n## other: kept\n\nas it was\n")
    result = run("--quick", "start", "--out", out)
    assert result.returncode == 0, result.stderr
    written = sections(out)
    assert out.read_text().startswith("# Mine\n\n## start: ")
    assert list(written) == ["start", "other"]
    assert written["other"] == "kept\n\nas it was\n"
    assert "stale" not in written["start"]
    assert "    python -m benchmarks start --quick\n" in written["start"]
    assert re.search(rf"(?m)^\| `gptkit --help` \| {FIGURE} \| {FIGURE} \|$", written["start"])
    for fact in ("cores", "GiB of memory", "Python 3", "torch 2", "transformers 5", "gptkit 0"):
        assert fact in written["start"]


def test_an_unknown_name_is_refused_with_those_that_are_there() -> None:
    result = run("start", "stop")
    assert result.returncode == 2
    assert f"no benchmark stop; there are {', '.join(NAMES)}" in result.stderr


def test_a_part_that_fails_has_its_row_and_the_next_goes_on() -> None:
    def broken() -> Iterator[Row]:
        yield ["first", "1", "2"]
        raise RuntimeError("no such kernel\nand more")

    parts: Parts = {"broken": broken, "sound": lambda: [["", "3", "4"]]}
    assert list(take_parts(parts)) == [
        ["first", "1", "2"],
        ["broken", "failed: RuntimeError: no such kernel", "-"],
        ["sound", "3", "4"],
    ]
    assert list(take_parts(parts, until=0)) == [
        [name, "not begun: the time is over", "-"] for name in parts
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)  # spinning threads crawl where the cores are taken
def test_all_run(tmp_path: Path) -> None:
    out = tmp_path / "results.md"
    result = run("--quick", "--out", out)
    assert result.returncode == 0, result.stderr
    written = sections(out)
    assert list(written) == NAMES
    for name in NAMES:
        figure = r"\d+ of \d+" if name == "facts" else FIGURE
        assert len(re.findall(rf"(?m)^\|.*{figure}.*\|$", written[name])) >= 2, written[name]
        assert re.search(r"(?m)^\*\*.+\.\*\* ", written[name]), "says what it means"
    assert "failed: " not in written["gpu"]
    assert result.stdout.count("## ") == len(NAMES)
