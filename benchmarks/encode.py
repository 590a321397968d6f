"""How fast text becomes a token file: gptkit-text beside `datasets` and `tokenizers`."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from time import sleep
from typing import Any

from benchmarks import corpora
from benchmarks.corpora import MB, Corpus, TokenizerPath
from benchmarks.report import ROOT, Result, Table
from benchmarks.timing import Spread, take_turns

SIZES = {corpora.king_james: 40 * MB, corpora.python_sources: 24 * MB}
QUICK = {corpora.sonnets: 9 * MB}
"""More than gptkit encodes before it starts other processes."""
ROUNDS = 3
TOKENS = 4096
PROCESS = "benchmarks.encode_process"
INTERVAL = 0.1
"""Seconds between two samples of the processes' memory."""

Run = Mapping[str, Any]
Contestant = tuple[str, int]
"""A program, and how many processes it is to use."""
CONTESTANTS: list[Contestant] = list(product(("gptkit-text", "datasets"), (1, 2)))

METHOD = """\
From a JSONL file to a file of uint16 tokens on the disk, each time in a process of its own with
empty caches, in turns (rounds: {rounds}). Imports are not timed. gptkit-text does what `gptkit
train` does: digests of the file and of the tokens, counts, hashes of near duplicates, a journal.
The other is `datasets.load_dataset`, `map(batched=True, num_proc=...)` with `encode_batch` of the
same tokenizer, and the memmap of nanoGPT's prepare.py; `map` turns the tokenizer's own threads off.
MB/s are of text in UTF-8, without JSON; "cores" is CPU time by time. The token streams are checked
to be equal, but for the end token with which gptkit's begins. The peak is the anonymous memory of
all processes, imports included, what they share counted once, looked at every {interval:.0f} ms;
mapped files, such as libraries, Arrow's cache and the memmap, are left out. Texts: {texts}.
{name} has documents of {verses} lines, again and again in other orders; one letter in {changed:.0f}
is changed at random, so that new words keep coming, as in other texts of this size. The trained
tokenizers have learned from the first {sample} MB."""


@dataclass(frozen=True)
class Measured:
    """The runs of all contestants on a text with a tokenizer."""

    corpus: Corpus
    tokenizer: TokenizerPath
    runs: Mapping[Contestant, list[Run]]

    def speed(self, contestant: Contestant) -> Spread:
        """Bytes of text a second."""
        return self._spread(contestant, "seconds").per(self.corpus.bytes)

    def gain(self, processes: int) -> float:
        """How many times as fast gptkit-text is."""
        ours, theirs = (self.speed((name, processes)) for name in ("gptkit-text", "datasets"))
        return ours.over(theirs).median

    def rows(self) -> Iterator[list[str]]:
        """Of the table."""
        for program, processes in CONTESTANTS:
            contestant = program, processes
            yield [
                f"{self.corpus.name}; {self.tokenizer.name}; {program}",
                str(processes),
                self.speed(contestant).show(1, unit=MB),
                f"{self._spread(contestant, 'cores').median:.1f}",
                self._spread(contestant, "peak").show(unit=MB),
            ]

    def _spread(self, contestant: Contestant, key: str) -> Spread:
        return Spread([run[key] for run in self.runs[contestant]])


def measure(quick: bool) -> Result:
    """Every text with every tokenizer."""
    rounds = 1 if quick else ROUNDS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = [write(folder, size) for write, size in (QUICK if quick else SIZES).items()]
        shared = [] if quick else [corpora.gpt2(folder)]
        found = [
            _measured(corpus, tokenizer, rounds)
            for corpus in texts
            for tokenizer in (corpora.trained(corpus, TOKENS), *shared)
        ]
    header = ("text; tokenizer; program", "processes", "MB/s", "cores", "peak MB")
    return Result(
        title="from text to a token file",
        table=Table(header, [row for one in found for row in one.rows()]),
        meaning=_meaning(found),
        method=_method(texts, rounds).replace("\n", " "),
    )


def _measured(corpus: Corpus, tokenizer: TokenizerPath, rounds: int) -> Measured:
    contestants = {c: partial(_in_process, corpus, tokenizer, c) for c in CONTESTANTS}
    runs = take_turns(contestants, rounds=rounds, warmup=0)
    if len({run["sha256"] for found in runs.values() for run in found}) > 1:
        raise RuntimeError(f"{corpus.name}, {tokenizer.name}: the token streams differ")
    return Measured(corpus, tokenizer, runs)


def _in_process(corpus: Corpus, tokenizer: TokenizerPath, contestant: Contestant) -> Run:
    """Encode in a process of its own; seconds, cores, a digest of the tokens, and memory."""
    program, processes = contestant
    with tempfile.TemporaryDirectory(dir=corpus.path.parent) as folder:
        paths = map(str, (corpus.path, tokenizer.path, folder))
        options = [program, *paths, str(tokenizer.end), str(processes)]
        env = os.environ | {
            "GPTKIT_CACHE": f"{folder}/cache",
            "HF_HOME": f"{folder}/cache",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }
        command, log = [sys.executable, "-m", PROCESS, *options], Path(folder) / "log"
        with log.open("wb") as errors:
            child = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            peak = _peak(child)
        assert child.stdout
        with child.stdout as output:
            printed = output.read()
        if child.returncode:
            raise RuntimeError(f"{command} failed:\n{log.read_text(errors='replace')}")
    run: Run = json.loads(printed.splitlines()[-1])
    return {**run, "peak": peak}


def _peak(child: subprocess.Popen[str]) -> int:
    """Bytes of anonymous memory that a process and its descendants have at most, until it ends."""
    highest = 0
    while child.poll() is None:
        highest = max(highest, sum(map(_anonymous, _tree(child.pid))))
        sleep(INTERVAL)
    return highest


def _tree(pid: int) -> Iterator[int]:
    """A process and its descendants; none if it has ended."""
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in path.read_text().split():
                yield from _tree(int(child))


def _anonymous(pid: int) -> int:
    """Bytes of a process, with its share of what others have, too; none if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                return int(line.split()[1]) * 1024
    return 0


def _meaning(found: list[Measured]) -> str:
    told = " and ".join(
        f"{_range([one.gain(n) for one in found])} times as fast with {n} process{'es' * (n > 1)}"
        for n in (1, 2)
    )
    return f"gptkit-text encodes {told}, beside `datasets` with `tokenizers` and as many processes."


def _range(values: list[float]) -> str:
    shown = [f"{value:.1f}" for value in (min(values), max(values))]
    return " to ".join(dict.fromkeys(shown))


def _method(texts: list[Corpus], rounds: int) -> str:
    told = [
        f"{text.name}, {text.bytes / MB:.0f} MB, {text.words / 1e6:.1f} million words, "
        f"{text.different:,} different ones"
        for text in texts
    ]
    return METHOD.format(
        rounds=rounds,
        interval=INTERVAL * 1e3,
        texts="; ".join(told),
        name=texts[0].name,
        verses=corpora.VERSES,
        changed=1 / corpora.CHANGED,
        sample=corpora.SAMPLE // MB,
    )
