"""nanoGPT's arithmetic, written out after its public description: what it computes, as it does.

Exact GELU, no biases, queries, keys and values split from one product and transposed, torch's
AdamW, which nanoGPT fuses on GPUs alone, and sampling that reads the whole context for every token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptkit.model.gpt import GPT
from gptkit.recipe.options import GPTConfig

BETAS, DECAY, MAX_NORM = (0.9, 0.95), 0.1, 1.0
NAMES = {"position.wpe": "wpe", "attn.qkv": "attn.c_attn", "attn.proj": "attn.c_proj"}
NAMES |= {"mlp.up": "mlp.c_fc", "mlp.proj": "mlp.c_proj"}
"""What nanoGPT calls gptkit's parameters, where the two differ."""


class NanoGPT(nn.Module):
    """A GPT as nanoGPT builds it.

    Args:
        config: its sizes; all other options must be nanoGPT's.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.block_size = config.block_size
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(_Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=False)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight

    @classmethod
    def of(cls, ours: GPT) -> "NanoGPT":
        """The same model as one of gptkit's without biases, with weights of its own."""
        theirs = cls(ours.config)
        weights = {_their_name(name): weight for name, weight in ours.weights().items()}
        theirs.load_state_dict(weights | {"lm_head.weight": weights["wte.weight"]})
        return theirs

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The mean cross-entropy of targets y (B, T), or without them the last logits (B, V)."""
        positions = torch.arange(x.size(1), device=x.device)
        h = self.drop(self.wte(x) + self.wpe(positions))
        for block in self.h:
            h = block(h)
        h = self.ln_f(h)
        if y is None:
            last: Tensor = self.lm_head(h[:, [-1]])[:, -1]
            return last
        logits = self.lm_head(h)
        return F.cross_entropy(logits.view(-1, logits.size(-1)), y.view(-1), ignore_index=-1)

    @torch.no_grad()
    def generate(self, x: Tensor, tokens: int, *, temperature: float = 1.0) -> Tensor:
        """Append so many tokens to x (B, T); all of the context is computed for each of them."""
        for _ in range(tokens):
            logits = self(x[:, -self.block_size :]) / temperature
            x = torch.cat((x, torch.multinomial(logits.softmax(-1), 1)), dim=1)
        return x


class Training:
    """nanoGPT's update: gradients clipped at norm 1, AdamW that decays matrices alone."""

    def __init__(self, model: nn.Module, *, learning_rate: float) -> None:
        self.model = model.train()
        parameters = list(model.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": DECAY},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        extra = {"fused": True} if parameters[0].is_cuda else {}
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, **extra)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One update; its loss."""
        loss: Tensor = self.model(x, y)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class _Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.n_embd, self.dropout = config.n_head, config.n_embd, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        B, T, C = x.size()
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
            for part in self.c_attn(x).split(self.n_embd, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.drop(self.c_proj(y))


class _MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return self.drop(self.c_proj(self.gelu(self.c_fc(x))))


class _Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=False)
        self.attn = _Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=False)
        self.mlp = _MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


def _their_name(name: str) -> str:
    for own, other in NAMES.items():
        name = name.replace(own, other)
    return name
