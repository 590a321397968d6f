"""GPTs of other libraries in the same shape, where they are installed: litgpt, x-transformers."""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import VOCABULARY, Shape

Loss = Callable[[Tensor, Tensor], Tensor]
"""From inputs and targets, both int64 (B, T), to the mean cross-entropy."""


def others(shape: Shape) -> dict[str, tuple[nn.Module, Loss]]:
    """Fresh models with their losses, by library."""
    makers = {"litgpt": _litgpt, "x-transformers": _x_transformers}
    found = {}
    for name, make in makers.items():
        try:
            with warnings.catch_warnings(action="ignore"):
                model = make(shape)
        except ImportError:
            continue
        found[name] = model, _loss_of(model)
    return found


def _loss_of(model: nn.Module) -> Loss:
    return lambda x, y: F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def _litgpt(shape: Shape) -> nn.Module:
    """Its closest model to GPT-2: rotary positions, an untied head."""
    from litgpt.config import Config
    from litgpt.model import GPT

    torch.manual_seed(0)
    return GPT(
        Config(
            block_size=shape.block_size, vocab_size=VOCABULARY, padded_vocab_size=VOCABULARY,
            n_layer=shape.n_layer, n_head=shape.n_head, n_embd=shape.n_embd,
            intermediate_size=4 * shape.n_embd, rotary_percentage=1.0, parallel_residual=False,
            bias=True, norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP",
            gelu_approximate="none",
        )
    )  # fmt: skip


def _x_transformers(shape: Shape) -> nn.Module:
    """Its decoder with learned positions, a tied head and torch's attention."""
    from x_transformers import Decoder, TransformerWrapper

    torch.manual_seed(0)
    return TransformerWrapper(
        num_tokens=VOCABULARY, max_seq_len=shape.block_size, tie_embedding=True,
        attn_layers=Decoder(
            dim=shape.n_embd, depth=shape.n_layer, heads=shape.n_head,
            attn_dim_head=shape.n_embd // shape.n_head, attn_flash=True,
        ),
    )  # fmt: skip
