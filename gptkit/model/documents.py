"""Attention within documents: several in a sequence, each as if it were alone.

Shapes: B sequences, T tokens, nh query heads, nkv key and value heads, hs = head size.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from gptkit.model.cache import NoCache

QUERIES = 128
"""Tokens whose attention is computed at once on a CPU."""

Attend = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
"""Attention of queries, keys and values, which are grouped or not."""

FLEX = {"cuda"}
"""Devices on which compiled models use flex_attention, which skips blocks that nobody sees."""


class Documents(NoCache):
    """Sequences in which every document is independent of the others, as in training.

    Args:
        x: token ids, int64 (B, T).
        start: the token that begins a document; None if only their ends are marked.
        end: the token that ends a document, so that the next one begins after it.
        dtype: of the queries.
        windows: of the layers: how many tokens a token sees; None: all before it.
    """

    def __init__(
        self,
        x: Tensor,
        start: int | None,
        *,
        end: int | None = None,
        dtype: torch.dtype = torch.float32,
        windows: Iterable[int | None] = (None,),
    ) -> None:
        columns = torch.arange(x.size(1), device=x.device)
        first = torch.zeros_like(x)  # (B, T), of each document
        if start is not None:
            first = torch.where(x == start, columns, first)
        if end is not None:
            first[:, 1:] = torch.where(x[:, :-1] == end, columns[1:], first[:, 1:])
        first = first.cummax(1).values
        self._positions = columns - first
        firsts = {w: first if w is None else first.maximum(columns - w + 1) for w in windows}
        self._biases = {w: _bias(first, dtype) for w, first in firsts.items()}  # (B, 1, T, T)
        self._flex: dict[int | None, Attend] = {}
        self._first_keys = [0]  # that a query of each part sees, in any row
        if torch.compiler.is_compiling():
            if x.device.type in FLEX:
                self._flex = {w: _flex_attention(first) for w, first in firsts.items()}
        elif x.device.type == "cpu":
            self._first_keys = first[:, ::QUERIES].amin(0).tolist()

    def positions(self, tokens: int) -> Tensor:
        """Positions within the documents, (B, T)."""
        return self._positions

    def first_seen(self, q: Tensor, k: Tensor, window: int | None) -> int:
        """0: the first query sees the first key."""
        return 0

    def mask(self, q: Tensor, k: Tensor, window: int | None) -> Tensor:
        """What is added to the scores, (B, 1, T, T): -inf but for earlier tokens of a document."""
        return self._biases[window]

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        dropout: float,
        grouped: bool,
        window: int | None = None,
    ) -> Tensor:
        """Attention; on a CPU to a part of the queries at a time, without keys that none sees."""
        if self._flex and not dropout:  # flex_attention has none
            return self._flex[window](q, k, v, grouped)
        if len(self._first_keys) == 1:
            return super().attend(q, k, v, dropout=dropout, grouped=grouped, window=window)
        mask, found = self.mask(q, k, window), []
        for i, key in enumerate(self._first_keys):
            start, stop = i * QUERIES, (i + 1) * QUERIES
            key = key if window is None else max(key, start - window + 1)
            rows, seen = slice(start, stop), slice(key, stop)
            part = F.scaled_dot_product_attention(
                *(q[:, :, rows], k[:, :, seen], v[:, :, seen]),
                attn_mask=mask[:, :, rows, seen],
                dropout_p=dropout,
                enable_gqa=grouped,
            )
            found.append(part)
        return torch.cat(found, dim=2)


def _bias(first: Tensor, dtype: torch.dtype) -> Tensor:
    """0 from each token to those since `first` (B, T) and itself, -inf to others, (B, 1, T, T)."""
    columns = torch.arange(first.size(1), device=first.device)
    seen = (columns >= first[:, :, None]) & (columns <= columns[:, None])
    return torch.where(seen[:, None], 0.0, -torch.inf).to(dtype)


def _flex_attention(first: Tensor) -> Attend:
    """Attention from each token to those since `first` (B, T)."""
    # Here, since it imports torch's compiler.
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= first[row, query])

    B, T = first.shape
    blocks = create_block_mask(sees, B, None, T, T, device=first.device)

    def attend(q: Tensor, k: Tensor, v: Tensor, grouped: bool) -> Tensor:
        # The CPU's kernel of torch 2.14 reads other strides wrongly.
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        return flex_attention(q, k, v, block_mask=blocks, enable_gqa=grouped)

    return attend
