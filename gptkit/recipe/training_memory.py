"""The memory of a training at its peak, from the sizes of its model alone.

The formulas follow what the eager step keeps for its backward pass, and were fitted to measured
peaks: `python -m benchmarks plan` compares them. `recipe.sizes` has the least that is needed.
"""

from dataclasses import dataclass

from gptkit.recipe import sizes
from gptkit.recipe.options import GPTConfig, MuonOptions, TrainOptions
from gptkit.recipe.sizes import NUMBER, Trained

GAPS = {False: 1.25, True: 1.9}
"""What a CPU's memory grows to per byte of tensors, without and with `recompute`: glibc's malloc
leaves gaps, and more of them where blocks come and go."""
LARGE = 1 << 25
"""Bytes from which on a tensor has memory of its own, without gaps."""


@dataclass(frozen=True)
class Setting:
    """How a training is run.

    Args:
        rows: sequences of a forward pass in one process.
        item_size: bytes of a number in matrix products: 4, or 2 in bfloat16.
        recompute: as in `[train]`.
        processes: over which the model is divided (`shard = true`).
        accumulates: whether a step has several forward passes, so that gradients are kept.
        on_gpu: where attention with dropout is one operation.
    """

    rows: int
    item_size: int = NUMBER
    recompute: bool = False
    processes: int = 1
    accumulates: bool = False
    on_gpu: bool = False


def setting(
    options: TrainOptions,
    *,
    item_size: int = NUMBER,
    processes: int = 1,
    rows: int | None = None,
    on_gpu: bool = False,
) -> Setting:
    """What a recipe asks for.

    Args:
        options: its table `[train]`.
        item_size: bytes of a number in matrix products.
        processes: that train together.
        rows: sequences of a forward pass; None takes the recipe's.
        on_gpu: whether they train on GPUs.
    """
    part = options.batch_size // processes
    rows = rows or min(options.micro_batch_size or part, part)
    return Setting(
        rows=rows,
        item_size=item_size,
        recompute=options.recompute,
        processes=processes if options.shard else 1,
        accumulates=rows < part or (processes > 1 and not options.shard),  # DDP's buckets
        on_gpu=on_gpu,
    )


def peak(
    config: GPTConfig, options: TrainOptions, how: Setting, trained: Trained | None = None
) -> int:
    """Bytes of tensors in a process at the peak of a step: the largest of four moments.

    Args:
        config: of the model.
        options: the recipe's table `[train]`.
        how: it is run.
        trained: how much of the model is trained; None: all of it.
    """
    outer, block, matrices = sizes.part_sizes(config)
    trained = trained or sizes.all_trained(config)
    layers, tokens = trained.layers, how.rows * config.block_size
    state = NUMBER * (outer + config.n_layer * block + trained.added + 2 * trained.all)
    if muon := isinstance(options.optimizer, MuonOptions):  # one moment of matrices
        state -= NUMBER * trained.matrices
    gradients = NUMBER * trained.all
    state, gradients = state // how.processes, gradients // how.processes
    state += _gathered(outer, block, how) + 4 * sizes.TOKEN * tokens  # this batch and the next one
    begin = gradients if how.accumulates else 0
    inside = tokens * block_bytes(config, how.item_size, on_gpu=how.on_gpu)
    inside += how.item_size * matrices if how.item_size < NUMBER else 0  # the weights, cast
    kept, again = (NUMBER * tokens * config.n_embd, inside) if how.recompute else (inside, 0)
    work = again + tokens * _work(config, how.item_size, on_gpu=how.on_gpu)
    head = tokens * (NUMBER + how.item_size) * config.n_embd
    logits = 3 * NUMBER * tokens * config.vocab_size  # logarithms, and two gradients of them
    head_done = begin or NUMBER * trained.outer // how.processes
    of_muon = _muon_work(config, matrices) if muon and not trained.added else 0
    return max(
        state + begin + layers * kept + head + logits,
        state + head_done + layers * kept + work,
        state + gradients + kept + work,
        state + gradients + of_muon,
    )


def _gathered(outer: int, block: int, how: Setting) -> int:
    """What FSDP2 gathers for a moment: two blocks and what is outside, with gradients."""
    if how.processes == 1:
        return 0
    cast = how.item_size if how.item_size < NUMBER else 0
    return 2 * NUMBER * (2 * block + outer) + cast * block


def process_peak(
    config: GPTConfig,
    options: TrainOptions,
    how: Setting,
    *,
    base: int,
    trained: Trained | None = None,
) -> int:
    """Bytes of a whole process at its peak: its base, the tensors, and on a CPU the gaps.

    Args:
        config: of the model.
        options: the recipe's table `[train]`.
        how: it is run.
        base: bytes of the process, or on the GPU, without the training.
        trained: how much of the model is trained; None: all of it.
    """
    tensors = peak(config, options, how, trained)
    gaps = 0.0 if how.on_gpu else GAPS[how.recompute] - 1
    return base + tensors + round(gaps * max(0, tensors - _large(config, how)))


def _large(config: GPTConfig, how: Setting) -> int:
    """Bytes of the tensors that have memory of their own."""
    tokens, inner = how.rows * config.block_size, config.inner_size
    layers = 1 if how.recompute else config.n_layer
    kinds = {  # bytes of one, and how many there are at the peak
        "embedding": (NUMBER * config.vocab_size * config.n_embd // how.processes, 4),
        "matrices": (NUMBER * inner * config.n_embd // how.processes, 8 * config.n_layer),
        "logits": (NUMBER * tokens * config.vocab_size, 3),
        "activations": (how.item_size * tokens * inner, 2 * layers),
    }
    return sum(size * count for size, count in kinds.values() if size >= LARGE)


def block_bytes(config: GPTConfig, item: int, *, on_gpu: bool = False) -> int:
    """Bytes per token that a block keeps for its backward pass."""
    width, inner = config.n_embd, config.inner_size
    queries, kv, _ = config.qkv_sizes
    norms = 2 * (NUMBER + item) * width  # what goes in and comes out, twice
    norms += 2 * NUMBER * width if config.norm == "rmsnorm" else 0  # before its scale
    attention = item * (2 * queries + 2 * kv) + NUMBER * config.n_head
    if config.position == "rotary" or config.qk_norm:
        attention += item * (2 * queries + kv)  # queries, keys; what comes out in another layout
    if config.qk_norm and item < NUMBER:
        attention += NUMBER * (queries + kv)
    if config.dropout and not on_gpu:  # plain products: probabilities, mask, what is left
        attention = 3 * NUMBER * (queries + config.n_head * config.block_size) + item * queries
    masks = 2 * item * width if config.dropout else 0
    return norms + attention + masks + item * inner * (4 if config.mlp == "swiglu" else 2)


def _work(config: GPTConfig, item: int, *, on_gpu: bool) -> int:
    """Bytes per token of gradients within a block, at their most: in the MLP or in attention."""
    most = 2 * item * config.inner_size
    if config.dropout and not on_gpu:
        most = max(most, 2 * NUMBER * config.n_head * config.block_size)
    return NUMBER * config.n_embd + most


def _muon_work(config: GPTConfig, matrices: int) -> int:
    """Of its iteration over the largest matrices of one shape: three copies and two squares."""
    largest = config.n_layer * config.inner_size * config.n_embd
    largest *= 2 if config.mlp == "swiglu" else 1
    return NUMBER * (3 * largest + 2 * config.n_layer * config.n_embd**2)
