"""Proof that merged weights compute what base and adapters compute, before they are exported."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gptkit.contract.comparison import compare_logits
from gptkit.model.gpt import GPT
from gptkit.model.lora import adapted
from gptkit.recipe import adapters
from gptkit.runs import base, checkpoint
from gptkit.runs.checked import check_adapters
from gptkit.runs.run_folder import RunFolder
from gptkit.runs.state import State

PROMPTS, PROMPT_TOKENS, TOKENS = 2, 8, 24
"""Prompts of token ids from all over the vocabulary, and tokens that are drawn after each."""


def prove(
    run: RunFolder, step_folder: Path, state: State, merged: GPT, weights: str | None
) -> None:
    """Compare logits and greedy tokens of merged weights with those of base and adapters.

    Args:
        run: has the base.
        step_folder: has the adapters.
        state: of the step folder.
        merged: the model of the step folder, on the CPU in evaluation mode.
        weights: the name of the set of weights that it has; None: the model's own.

    Raises:
        CheckpointError: the base or the adapters are damaged.
        ExportError: they differ.
    """
    model = _with_adapters(run, step_folder, state, weights)
    tokens = _greedy(merged, _prompts(merged.config.vocab_size, merged.config.block_size))
    with torch.no_grad():
        expected, found = model.logits(tokens), merged.logits(tokens)
    compare_logits(
        f"{step_folder}, merged",
        expected,
        found,
        hint="nothing was written; another checkpoint: --checkpoint STEP",
    )


def _with_adapters(run: RunFolder, step_folder: Path, state: State, weights: str | None) -> GPT:
    """The model as it was trained."""
    assert state.lora
    model = GPT(state.config, seed=None, linear=adapted(state.config, state.lora))
    base.of(run, state.base_sha256).give(model)
    file = checkpoint.load_tensors(step_folder, state, checkpoint.adapters_file(weights))
    check_adapters(step_folder, state, file, weights)
    own = adapters.from_peft(state.config, state.lora, file)
    model.load_weights({**model.weights(), **own})
    return model.eval()


def _prompts(vocab_size: int, block_size: int) -> Tensor:
    """Token ids (B, T)."""
    count = PROMPTS * min(PROMPT_TOKENS, block_size)
    ids = np.linspace(0, vocab_size - 1, count).astype(np.int64)
    return torch.from_numpy(ids.reshape(-1, PROMPTS).T.copy())


@torch.no_grad()
def _greedy(model: GPT, tokens: Tensor) -> Tensor:
    """Prompts (B, T) with the likeliest tokens behind them, as far as the context goes."""
    for _ in range(min(TOKENS, model.config.block_size - tokens.size(1))):
        likeliest = model.logits(tokens)[:, -1:].argmax(-1)
        tokens = torch.cat((tokens, likeliest), dim=1)
    return tokens
