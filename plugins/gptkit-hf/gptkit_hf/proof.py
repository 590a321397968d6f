"""Proof that a folder holds the model: its files, computed by `reference`, against the module."""

from collections.abc import Sequence

import numpy as np
import torch

from gptkit.plugin import TrainedModel, compare_logits
from gptkit_hf import reference
from gptkit_hf.folder import ModelFolder

GREEDY = 16
"""Tokens that are drawn after the start."""
SPREAD = 8
"""Ids from all over the vocabulary that are compared, too."""


@torch.no_grad()
def prove(model: TrainedModel, folder: ModelFolder) -> float:
    """Compare logits and greedy tokens; returns the largest difference of logits.

    Raises:
        ExportError: they are not equal.
    """
    greedy = _greedy(model, model.codec.starts[0])
    spread = np.linspace(0, model.config["vocab_size"] - 1, SPREAD).astype(int).tolist()
    size = model.config["block_size"]
    differences = [_compare(model, folder, ids[:size]) for ids in (greedy, spread)]
    return max(differences)


def _greedy(model: TrainedModel, start: Sequence[int]) -> list[int]:
    """The start and the likeliest tokens after it, as far as they fit into the context."""
    ids = list(start)
    while len(ids) < min(len(start) + GREEDY, model.config["block_size"]):
        logits = model.module.logits(torch.tensor([ids]))  # type: ignore[operator]
        ids.append(int(logits[0, -1].argmax()))
    return ids


def _compare(model: TrainedModel, folder: ModelFolder, ids: list[int]) -> float:
    return compare_logits(
        folder.path.name,
        model.module.logits(torch.tensor([ids]))[0],  # type: ignore[operator]
        reference.logits(folder.config, folder.tensors, ids),
        hint="nothing was kept; this is a fault of gptkit-hf, please report it",
    )
