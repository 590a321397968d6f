"""The usual way from text to a token file: `datasets`, `tokenizers` and a memmap."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tokenizers import Tokenizer

BATCHES = 1024
"""Parts in which the tokens are written, as in nanoGPT's data/openwebtext/prepare.py."""


def prepare(
    text: Path, tokenizer: Path, folder: Path, *, end: int, processes: int
) -> Sequence[Path]:
    """Write the tokens of a JSONL file as nanoGPT does, the end token after each document."""
    rows = datasets.load_dataset("json", data_files=str(text), split="train")
    rows = rows.map(
        encode,
        batched=True,
        num_proc=processes,
        remove_columns=["text"],
        fn_kwargs={"tokenizer": str(tokenizer), "end": end},
    )
    total = int(np.sum(rows["len"], dtype=np.uint64))
    out = folder / "tokens.bin"
    tokens = np.memmap(out, dtype=np.uint16, mode="w+", shape=(total,))
    batches, place = min(BATCHES, len(rows)), 0
    for i in range(batches):
        batch = rows.shard(num_shards=batches, index=i, contiguous=True).with_format("numpy")
        found = np.concatenate(batch["ids"][:])
        tokens[place : place + len(found)] = found
        place += len(found)
    tokens.flush()
    return [out]


def encode(batch: Mapping[str, Sequence[str]], *, tokenizer: str, end: int) -> dict[str, Any]:
    """The tokens of some texts, and how many each has."""
    found = _loaded(tokenizer).encode_batch(batch["text"], add_special_tokens=False)
    ids = [[*one.ids, end] for one in found]
    return {"ids": ids, "len": [len(one) for one in ids]}


@cache
def _loaded(path: str) -> Tokenizer:
    """In each process: what spells a special token is text, which pickling would forget."""
    tokenizer = Tokenizer.from_file(path)
    tokenizer.encode_special_tokens = True
    return tokenizer
