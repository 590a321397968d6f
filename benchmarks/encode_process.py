"""A process that encodes a text with one program, and prints what it took as JSON."""

import hashlib
import importlib
import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

MODULES = {"gptkit-text": "benchmarks.encode_ours", "datasets": "benchmarks.encode_theirs"}


def main(program: str, *paths: str, end: int, processes: int) -> None:
    """Encode.

    Args:
        program: one of `MODULES`, whose imports are not timed.
        paths: of the text, of the tokenizer, and of a folder for the tokens.
        end: the end token.
        processes: how many encode.
    """
    prepare = importlib.import_module(MODULES[program]).prepare
    begin, cpu = perf_counter(), _cpu()
    found = prepare(*map(Path, paths), end=end, processes=processes)
    seconds = perf_counter() - begin
    cores = (_cpu() - cpu) / seconds
    print(json.dumps({"seconds": seconds, "cores": cores, "sha256": _digest(found, end)}))


def _digest(paths: Sequence[Path], end: int) -> str:
    """Of the tokens, without an end token at the beginning."""
    stream = b"".join(path.read_bytes() for path in paths)
    return hashlib.sha256(stream.removeprefix(end.to_bytes(2, sys.byteorder))).hexdigest()


def _cpu() -> float:
    """Seconds of this process and of its children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main(*sys.argv[1:-2], end=int(sys.argv[-2]), processes=int(sys.argv[-1]))
