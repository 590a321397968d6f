"""`python -m tests.hostile AREA SEED [COUNT]`: run cases and print their outcomes as JSON lines."""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.hostile.harness import run_here

parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
parser.add_argument("area")
parser.add_argument("seed", type=int)
parser.add_argument("count", type=int, nargs="?", default=1)
parser.add_argument("--in", dest="base", type=Path, help="where the good files are made, once")
asked = parser.parse_args()

with tempfile.TemporaryDirectory() as temporary:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GPTKIT_CACHE", f"{temporary}/cache")
    counts: Counter[str] = Counter()
    told = os.fdopen(os.dup(1), "w")  # what a case does to stdout does not concern it
    for outcome in run_here(asked.area, asked.seed, asked.count, asked.base or Path(temporary)):
        counts[outcome["outcome"]] += 1
        if asked.base:
            print(json.dumps(outcome), file=told, flush=True)
        elif asked.count == 1 or outcome["outcome"] not in ("fine", "refused"):
            words = (str(outcome[key]) for key in ("outcome", "seed", "about", "text"))
            print("\n".join(words).encode("ascii", "backslashreplace").decode())
    if not asked.base:
        print(dict(counts), file=sys.stderr)
