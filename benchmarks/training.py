"""Trainers for tokens that a benchmark makes itself, as `gptkit.trainer` makes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import gptkit
from gptkit.codec import Codec
from gptkit.plugin import Callback, Data, Split
from gptkit.training.trainer import Trainer

SEED = 1
ENDLESS = 10**6
"""Steps that no benchmark reaches."""
CPU = {"device": "cpu", "dtype": "float32"}


class NoCodec(Codec):
    """A codec for tokens that stand for nothing; no benchmark samples them."""

    contract = 1
    suffix = ".bin"

    def encode(self, prompt: str) -> list[int]:
        """Token 0."""
        return [0]

    def decode(self, tokens: Sequence[int]) -> bytes:
        """Nothing."""
        return b""


def make_trainer(
    split: Split,
    *,
    vocab_size: int,
    block_size: int,
    model: Mapping[str, Any],
    train: Mapping[str, Any],
    callbacks: Sequence[Callback] = (),
    document_start: int | None = None,
) -> Trainer:
    """A trainer that is ready to step.

    Args:
        split: the tokens, for training and validation.
        vocab_size: number of different tokens.
        block_size: tokens of a sequence.
        model: the recipe's table `[model]`.
        train: the recipe's table `[train]`; endless, on the CPU and in float32 by default.
        callbacks: run at every event.
        document_start: the token that begins a document, if they are trained each alone.
    """
    recipe = {
        "seed": SEED,
        "dataset": {"use": "char-text"},  # `data` takes its place
        "model": model,
        "train": {"steps": ENDLESS, **({} if "device" in train else CPU), **train},
    }
    data = Data(split, split, NoCodec(), vocab_size, block_size, document_start=document_start)
    return gptkit.trainer(recipe, data=data, callbacks=callbacks)
