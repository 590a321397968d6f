"""Trainers for tokens that a benchmark makes itself, as `gptkit.trainer` makes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import gptkit
from gptkit.plugin import Callback, Data, Split
from gptkit.training.trainer import Trainer

SEED = 1
ENDLESS = 10**6
"""Steps that no benchmark reaches."""


def make_trainer(
    split: Split,
    *,
    vocab_size: int,
    block_size: int,
    model: Mapping[str, Any],
    train: Mapping[str, Any],
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """A trainer that is ready to step.

    Args:
        split: the tokens, for training and validation.
        vocab_size: number of different tokens.
        block_size: tokens of a sequence.
        model: the recipe's table `[model]`.
        train: the recipe's table `[train]`; on the CPU and endless by default.
        callbacks: run at every event.
    """
    recipe = {
        "seed": SEED,
        "dataset": {"use": "char-text"},  # `data` takes its place
        "model": model,
        "train": {"steps": ENDLESS, "device": "cpu", **train},
    }
    codec: Any = None  # not used: nothing is sampled
    data = Data(split, split, codec, vocab_size, block_size)
    return gptkit.trainer(recipe, data=data, callbacks=callbacks)
