"""The memory of training over many GPUs, on paper: `python docs/scaling.py` prints the tables.

Bytes with float32 weights, AdamW, bfloat16 products and `recompute = true`. P parameters, L layers
of width C, V ids, b sequences of T tokens at once, N GPUs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

V, T, B = 50_304, 2048, 1
RESERVE = 2e9
"""CUDA's context, NCCL's buffers and gaps between tensors."""
CARDS = (24e9, 40e9, 80e9, 141e9)
GROUPS = (1, 2, 4, 8, 16, 64)


@dataclass(frozen=True)
class Shape:
    """A GPT with 128 channels per layer, as GPT-3's 6.7 B has them."""

    layers: int

    @property
    def width(self) -> int:
        """C."""
        return 128 * self.layers

    @property
    def block(self) -> int:
        """Parameters of a block but for its norms: 4 C^2 of attention and 8 C^2 of the MLP."""
        return 12 * self.width**2

    @property
    def parameters(self) -> int:
        """P, with a tied head."""
        return self.layers * self.block + V * self.width

    @property
    def activations(self) -> float:
        """What enters each block, the inside of one block, and the logits with their gradient."""
        tokens = B * T
        return tokens * (4 * self.layers * self.width + 50 * self.width + 16 * V)

    @property
    def gathered(self) -> float:
        """Under FSDP2: two blocks and two blocks' gradients at once, embedding and head."""
        return 18 * self.block + 10 * V * self.width

    def ddp(self) -> float:
        """Bytes on each GPU, however many."""
        return 16 * self.parameters + self.activations + RESERVE

    def fsdp(self, gpus: int) -> float:
        """Bytes on each of so many GPUs."""
        return 16 * self.parameters / gpus + self.gathered + self.activations + RESERVE


def largest(memory: float, gpus: int) -> Shape:
    """The largest shape that fits GPUs of so many bytes; on a single one nothing is sharded."""
    shape = Shape(1)
    while True:
        deeper = Shape(shape.layers + 1)
        if (deeper.fsdp(gpus) if gpus > 1 else deeper.ddp()) > memory:
            return shape
        shape = deeper


def table() -> Iterator[str]:
    """Billions of parameters by GPUs and their memory, as Markdown."""
    yield "| GPUs | " + " | ".join(f"{card / 1e9:.0f} GB" for card in CARDS) + " |"
    yield "|--:|" + "--:|" * len(CARDS)
    for gpus in GROUPS:
        sizes = (largest(card, gpus).parameters / 1e9 for card in CARDS)
        yield f"| {gpus} | " + " | ".join(f"{size:.1f} B" for size in sizes) + " |"


def main() -> None:
    """Print the 7 B model's memory and the table."""
    seven = Shape(32)
    print(f"P {seven.parameters / 1e9:.2f} B, DDP {seven.ddp() / 1e9:.1f} GB")
    print(f"activations {seven.activations / 1e9:.1f} GB, gathered {seven.gathered / 1e9:.1f} GB")
    for gpus in (2, 8, 64):
        print(f"FSDP2 on {gpus} GPUs {seven.fsdp(gpus) / 1e9:.1f} GB")
    print("\n".join(table()))


if __name__ == "__main__":
    main()
