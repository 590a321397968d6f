"""The same GPT twice: gptkit's, and transformers' GPT2LMHeadModel with the same weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from gptkit.model.gpt import GPT
from gptkit.recipe.options import GPTConfig

VOCABULARY = 65
"""As many ids as Tiny Shakespeare has characters."""
THREADS = (1, 2)

NAMES = {
    "position.wpe": "wpe",
    "attn.qkv": "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.proj": "mlp.c_proj",
}
"""What transformers calls gptkit's parameters, where the two differ."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a GPT and of its batches."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    batch_size: int

    def __str__(self) -> str:
        return (
            f"{self.n_layer}L {self.n_head}H {self.n_embd}, "
            f"T {self.block_size}, B {self.batch_size}"
        )

    @property
    def model(self) -> dict[str, int]:
        """A recipe's table `[model]`."""
        return {"n_layer": self.n_layer, "n_head": self.n_head, "n_embd": self.n_embd}

    @property
    def tokens(self) -> int:
        """Tokens per batch."""
        return self.batch_size * self.block_size


def make_ours(shape: Shape) -> GPT:
    """GPT-2's architecture in gptkit, newly initialised."""
    torch.manual_seed(0)
    return GPT(GPTConfig(**shape.model, block_size=shape.block_size, vocab_size=VOCABULARY))


def make_theirs(ours: GPT, *, activation: str = "gelu") -> GPT2LMHeadModel:
    """The same model in transformers, at the settings that are fastest there.

    Args:
        ours: gives shape and weights.
        activation: the default is what `ours` has; `gelu_new`, theirs, is several operators.
    """
    config = ours.config
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            activation_function=activation,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )
    )
    theirs.loss_type = "ForCausalLM"  # what it takes anyway, after a warning
    weights = {_their_name(n): _their_layout(n, p) for n, p in ours.named_parameters()}
    theirs.load_state_dict(weights | {"lm_head.weight": weights["transformer.wte.weight"]})
    return theirs


def check_equal(ours: GPT, theirs: GPT2LMHeadModel, x: Tensor, y: Tensor) -> None:
    """Check that the two models are equal.

    Raises:
        RuntimeError: the two differ in size or in loss, or the loss is not a fresh model's.
    """
    sizes = ours.n_parameters(), theirs.num_parameters()
    with torch.no_grad():
        losses = ours(x, y).item(), theirs(x, labels=x, shift_labels=y, use_cache=False).loss.item()
    fresh = math.log(VOCABULARY)
    if sizes[0] != sizes[1] or abs(losses[0] - losses[1]) > 1e-4 or abs(losses[0] - fresh) > 0.2:
        raise RuntimeError(
            f"not the same model: parameters {sizes}, losses {losses}, about {fresh:.3f} expected"
        )


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch compute with that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _their_name(name: str) -> str:
    for own, other in NAMES.items():
        name = name.replace(own, other)
    return f"transformer.{name}"


def _their_layout(name: str, parameter: Tensor) -> Tensor:
    """Their linear layers inside the blocks are stored as (in, out)."""
    linear = name.startswith("h.") and parameter.dim() == 2
    return parameter.detach().T if linear else parameter.detach()
