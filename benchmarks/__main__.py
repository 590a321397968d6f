"""`python -m benchmarks [NAME ...]`: measure, and write the figures to RESULTS.md."""

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.timing import Bystanders

BENCHMARKS = {
    "start": "benchmarks.start",
    "step": "benchmarks.step",
    "step_memory": "benchmarks.step_memory",
    "plan": "benchmarks.plan",
    "time_to_loss": "benchmarks.time_to_loss",
    "memory": "benchmarks.memory",
    "long_run": "benchmarks.long_run",
    "tokens": "benchmarks.tokens",
    "encode": "benchmarks.encode",
    "read_ahead": "benchmarks.read_ahead",
    "documents": "benchmarks.documents",
    "sample": "benchmarks.sample",
    "onnx": "benchmarks.onnx",
    "imported": "benchmarks.imported",
    "facts": "benchmarks.facts",
    "gpu": "benchmarks.gpu",
}
"""Module by name; each has `measure(quick) -> report.Result`. They run in this order."""

RESULTS = Path(__file__).with_name("RESULTS.md")


def main(arguments: Sequence[str]) -> None:
    """Run the named benchmarks, or all, one after the other."""
    options = _parse(arguments)
    out = options.out or (None if options.quick else RESULTS)
    for name in options.names or _all(quick=options.quick):
        print(f"{name} ...", file=sys.stderr, flush=True)
        section = _run(name, quick=options.quick)
        print(section)
        if out:
            report.update(out, name, section)


def _all(*, quick: bool) -> list[str]:
    """All benchmarks that this machine can measure; with --quick all, to see that they run."""
    import torch

    return [name for name in BENCHMARKS if name != "gpu" or quick or torch.cuda.is_available()]


def _run(name: str, *, quick: bool) -> str:
    """Measure one benchmark; its section of the results."""
    command = ["python", "-m", "benchmarks", name, *(["--quick"] if quick else [])]
    with Bystanders() as bystanders:
        result = importlib.import_module(BENCHMARKS[name]).measure(quick)
    return report.section(name, result, command=shlex.join(command), bystanders=bystanders.share)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure gptkit beside its peers on this machine. Needs requirements-dev.txt.",
        epilog=f"Benchmarks: {', '.join(BENCHMARKS)}.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to run; all if left out")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer and smaller runs, to see that all works; the figures are rough, so they are "
        "only printed, unless --out says where to write them",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"the Markdown file; else {RESULTS.name} here"
    )
    options = parser.parse_intermixed_args(arguments)
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
