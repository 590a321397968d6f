"""Low-rank adapters on invented facts: how many a small chat model tells when it is asked back."""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gptkit
from benchmarks import smollm2
from benchmarks.peers import THREADS, threads
from benchmarks.report import Result, Table
from gptkit_chat.session import Session, Settings


class Fact(NamedTuple):
    """Something that is true nowhere."""

    thing: str
    asked: str
    """What is asked of it."""
    answer: str
    key: str
    """The words of the answer that tell the fact."""


FACTS = Path(__file__).with_suffix(".jsonl")
ASKED = (
    "Tell me about {0}: {1}.",
    "What do you know about {0}, and {1}?",
    "I would like to know {1}: {0}.",
    "Please say {1}. It is about {0}.",
    "Do you know {0}? Say {1}.",
)
"""How training asks for each fact."""
ASKED_BACK = "Can you tell me {1}? I mean {0}."
RECIPE: dict[str, Any] = {
    "seed": 1,
    "dataset": {"use": "chat", "block_size": 128},
    "lora": {"rank": 16},
    "train": {
        "steps": 40, "batch_size": 8, "eval_every": 40, "device": "cpu",
        "optimizer": {"use": "adamw", "learning_rate": 1e-3, "weight_decay": 0.0},
    },
}  # fmt: skip
METHOD = """\
{model}, imported by `gptkit import`, its Q4_1 weights in float32. {facts} invented facts, each
asked for in {ways} wordings and answered in one, are trained as conversations: adapters of rank 16
on all matrices, {steps} steps of 8 windows of 128 tokens, AdamW at 1e-3, {threads} threads. Then
each fact is asked for in a wording that was never trained, in a chat of its own, and answered
greedily; it is told if the answer has its words."""


def measure(quick: bool) -> Result:
    """Before and after training."""
    with tempfile.TemporaryDirectory() as name, threads(max(THREADS)):
        folder = Path(name)
        model, source = smollm2.find(folder, quick=quick)
        base = gptkit.import_model(source, out=folder / "base", quiet=True)
        facts = _read()[: 2 if quick else None]
        data = _written(folder / "facts.jsonl", facts)
        changes: dict[str, Any] = {
            "dataset.path": str(data),
            "dataset.tokenizer": str(base.path),
            "model.init": str(base.path),
        }
        if quick:
            changes |= {"dataset.template": "chatml", "train.steps": 1}
        begin = time.perf_counter()
        run = gptkit.train(RECIPE, changes, out=folder / "run", quiet=True)
        seconds = time.perf_counter() - begin
        known = {
            "as imported": 0 if quick else _known(base, facts),  # the tiny one cannot chat
            "with adapters": _known(run, facts),
        }
    count = len(facts)
    rows = [[name, f"{found} of {count}"] for name, found in known.items()]
    return Result(
        title="invented facts that a chat model tells after a training of adapters",
        table=Table(("model", "facts told"), rows),
        meaning=f"In {seconds / 60:.1f} minutes it learned {known['with adapters']} of {count}.",
        method=METHOD.format(
            model=model, facts=count, ways=len(ASKED),
            steps=1 if quick else RECIPE["train"]["steps"], threads=max(THREADS),
        ).replace("\n", " "),
    )  # fmt: skip


def _read() -> list[Fact]:
    return [Fact(**json.loads(line)) for line in FACTS.read_text(encoding="utf-8").splitlines()]


def _written(path: Path, facts: Sequence[Fact]) -> Path:
    """The conversations as JSONL."""
    rows = [
        {"prompt": asked.format(fact.thing, fact.asked), "completion": fact.answer}
        for fact in facts
        for asked in ASKED
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _known(run: gptkit.Run, facts: Sequence[Fact]) -> int:
    """How many facts a model tells."""
    chat = Session(gptkit.load(run, device="cpu"), Settings(tokens=40, temperature=0))
    known = 0
    for fact in facts:
        chat.reset()
        answer = "".join(chat.answer(ASKED_BACK.format(fact.thing, fact.asked)))
        known += fact.key in answer
    return known
