"""Evaluation: the mean loss over a split in fixed windows."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from gptkit.data.order import walk
from gptkit.data.split import IGNORE, Split
from gptkit.errors import DataError
from gptkit.model.gpt import evaluating
from gptkit.training.device import RunDevice
from gptkit.training.distributed import ALONE, Ranks

MASKED = "a target that counts is a token id; IGNORE (-100) masks it"


@dataclass(frozen=True)
class Evaluation:
    """The mean loss over a split, in nats per token, and the number of tokens measured."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))  # a larger one overflows a float

    @property
    def bits_per_token(self) -> float:
        """The loss in bits."""
        return self.loss / math.log(2)


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    run_device: RunDevice,
    batch_size: int,
    batches: int | None = None,
    ranks: Ranks = ALONE,
    document_start: int | None = None,
    document_end: int | None = None,
    name: str = "the split",
    advance: Callable[[int], None] | None = None,
) -> Evaluation:
    """The loss over a whole split in fixed windows, or over `batches` batches of them.

    Each rank computes a part of the batches; every rank gets the loss over all of them.
    `document_start` and `document_end` are those of the data; `name` is what errors call the split;
    `advance` is told the number of windows after each batch.

    Raises:
        DataError: there is nothing to measure, since every target is masked.
    """
    total, tokens = 0.0, 0
    with evaluating(model), run_device.autocast():
        for x, y in ranks.shard(walk(split, batch_size, batches)):
            counted = int((y != IGNORE).sum())
            loss = model(run_device.put(x), run_device.put(y), document_start, document_end)
            total += loss.item() * counted if counted else 0.0
            tokens += counted
            if advance:
                advance(len(x))
    total, tokens = ranks.all_reduce_sum(total), int(ranks.all_reduce_sum(tokens))
    if not tokens:
        raise DataError(f"{name}: every target is masked, so there is no loss", hint=MASKED)
    return Evaluation(total / tokens, tokens)
