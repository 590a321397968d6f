"""The parameters of a model and the memory that it needs, from its sizes alone.

All numbers of bytes are the least: what is counted is needed in any case, and a little more is.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gptkit.memory import Need
from gptkit.recipe.options import GPTConfig, MuonOptions, TrainOptions

Shape = tuple[int, ...]
NUMBER = 4  # bytes of a weight, a gradient or a moment
TOKEN = 8  # bytes of a token id in a batch
FUSED_HEAD_SIZES = 8
"""onnxruntime's GroupQueryAttention needs a head size that is a multiple of this."""


@dataclass(frozen=True)
class Trained:
    """How many numbers of a model are trained: all of them, or fewer."""

    outer: int
    """Outside the blocks."""
    blocks: int
    """In all blocks together, with those of adapters."""
    matrices: int
    """Those of them that are in matrices."""
    added: int
    """In adapters, which the model itself does not have."""
    layers: int
    """Blocks that the backward pass goes through: the last ones."""
    multiplied: int
    """Trained numbers that multiply, so that a token does more than read a row of them."""

    @property
    def all(self) -> int:
        """Numbers that are trained."""
        return self.outer + self.blocks


def not_fused(config: GPTConfig) -> str | None:
    """Why onnxruntime's GroupQueryAttention cannot run a model; None if it can."""
    if config.head_size % FUSED_HEAD_SIZES:
        return f"heads of {config.head_size} numbers, and not of a multiple of {FUSED_HEAD_SIZES}"
    if config.windows != {None}:  # one token more in onnxruntime 1.23 than in 1.31
        return "layers with a window, which differ between its versions"
    return None


def parameter_shapes(config: GPTConfig) -> dict[str, Shape]:
    """The shape of every parameter by its name, of a model that is not built; in no order."""
    blocks = range(config.n_layer)
    block = block_shapes(config)
    inside = {f"h.{i}.{name}": shape for i in blocks for name, shape in block.items()}
    return outer_shapes(config) | inside


def outer_shapes(config: GPTConfig) -> dict[str, Shape]:
    """Of the parameters outside the blocks."""
    width = config.n_embd
    shapes: dict[str, Shape] = {"wte.weight": (config.vocab_size, width)}
    if config.position == "learned":
        shapes["position.wpe.weight"] = (config.block_size, width)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    return shapes | _norm_shapes(config, "ln_f")


def block_shapes(config: GPTConfig) -> dict[str, Shape]:
    """Of the parameters of a block."""
    width, inner = config.n_embd, config.inner_size
    layers = {
        "attn.qkv": (sum(config.qkv_sizes), width),
        "attn.proj": (width, config.qkv_sizes[0]),
        "mlp.up": (2 * inner if config.mlp == "swiglu" else inner, width),
        "mlp.proj": (width, inner),
    }
    shapes: dict[str, Shape] = {f"{name}.weight": shape for name, shape in layers.items()}
    biases = dict.fromkeys(layers, config.bias) | {"attn.qkv": config.has_qkv_bias}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items() if biases[name]}
    if config.qk_norm_scale:
        shapes |= {f"attn.{name}.weight": (config.head_size,) for name in ("q_norm", "k_norm")}
    return shapes | _norm_shapes(config, "ln_1") | _norm_shapes(config, "ln_2")


def count(shapes: Iterable[Shape]) -> int:
    """Numbers of parameters of these shapes together."""
    return sum(map(math.prod, shapes))


def n_parameters(config: GPTConfig) -> int:
    """Number of parameters, a tied head counted once."""
    outer, block = outer_shapes(config), block_shapes(config)
    return count(outer.values()) + config.n_layer * count(block.values())


def parameters_by_part(config: GPTConfig) -> dict[str, int]:
    """Number of parameters of each part; a tied head counts as the embedding."""
    block = {f"h.{name}": shape for name, shape in block_shapes(config).items()}
    found = dict.fromkeys(_PARTS.values(), 0)
    for name, shape in (outer_shapes(config) | block).items():
        part = next(part for prefix, part in _PARTS.items() if name.startswith(prefix))
        found[part] += math.prod(shape) * (config.n_layer if name in block else 1)
    return found


def part_sizes(config: GPTConfig) -> tuple[int, int, int]:
    """Numbers of parameters: outside the blocks, of a block, of the matrices in a block."""
    block = block_shapes(config)
    matrices = count(shape for shape in block.values() if len(shape) == 2)
    return count(outer_shapes(config).values()), count(block.values()), matrices


def flops_per_token(config: GPTConfig, trained: Trained | None = None) -> int:
    """Floating-point operations of a training step per token, forward and backward pass.

    6 N + 12 L C T (Chowdhery et al. 2022, appendix B): N are the parameters that multiply, so a
    table of which a token only reads a row does not count. In a layer with a window, T is at most
    the window. The causal half is not subtracted, and recomputing does not count.

    Of what is frozen, the 2 N of the weights' gradients do not count, and nothing of the backward
    pass in blocks that it does not go through.
    """
    trained = trained or all_trained(config)
    looked_up = count(s for name, s in outer_shapes(config).items() if name in tables(config))
    attention = 4 * config.qkv_sizes[0] * _seen(config)
    forward = n_parameters(config) - looked_up + trained.added
    left_out = config.n_layer - trained.layers
    backward = forward - left_out * count(block_shapes(config).values())
    of_attention = 8 * config.qkv_sizes[0] * _seen(config, left_out)
    return 2 * (forward + backward + trained.multiplied) + attention + of_attention


def tables(config: GPTConfig) -> set[str]:
    """The parameters of which a token only reads a row."""
    return {"position.wpe.weight"} | (set() if config.tie_embeddings else {"wte.weight"})


def all_trained(config: GPTConfig) -> Trained:
    """A model of which nothing is frozen."""
    outer, block, matrices = part_sizes(config)
    looked_up = count(s for name, s in outer_shapes(config).items() if name in tables(config))
    n, blocks = config.n_layer, config.n_layer * block
    return Trained(outer, blocks, n * matrices, 0, n, outer + blocks - looked_up)


def to_train(
    config: GPTConfig,
    options: TrainOptions,
    *,
    item_size: int = NUMBER,
    processes: int = 1,
    trained: Trained | None = None,
) -> Need:
    """The memory of a training in each of its processes.

    Args:
        config: of the model.
        options: the recipe's table `[train]`.
        item_size: bytes of a number in forward passes: 2 in bfloat16.
        processes: that train together.
        trained: how much of the model is trained; None: all of it.
    """
    trained = trained or all_trained(config)
    parts = dict.fromkeys(_HINTS, 0)
    kept = _n_kept(config, options, trained)
    parts["model"] = NUMBER * kept // (processes if options.shard else 1)
    rows = max(1, (options.micro_batch_size or options.batch_size // processes))
    tokens = rows * config.block_size
    numbers = _n_activations(config, options, trained) + config.vocab_size
    parts["step"] = tokens * item_size * numbers
    parts["batch"] = 2 * TOKEN * (options.batch_size // processes) * config.block_size
    largest = max(parts, key=parts.__getitem__)
    return Need("this training", _HINTS[largest], sum(parts.values()))


def to_load(config: GPTConfig) -> Need:
    """The memory of a loaded model."""
    table = config.block_size * config.head_size if config.position == "rotary" else 0
    return Need(
        "this model",
        "a computer with more memory, or a smaller model",
        NUMBER * (n_parameters(config) + table),
    )


def to_sample(config: GPTConfig, samples: int, tokens: int) -> Need:
    """The memory of a loaded model that draws so many tokens of so many samples at once."""
    tokens = min(tokens, config.block_size)
    cache = 2 * config.n_layer * config.kv_heads * config.head_size * tokens
    size = NUMBER * n_parameters(config) + samples * NUMBER * (cache + config.vocab_size)
    return Need(f"{samples:,} samples at once", "draw fewer at once: --samples", size)


def _seen(config: GPTConfig, first: int = 0) -> int:
    """Tokens that a token sees at most, over all layers from the first one on."""
    context, period = config.block_size, len(config.window_pattern)
    return sum(
        len(range(first + i, config.n_layer, period))
        * min(context, config.window_of(first + i) or context)
        for i in range(period)
    )


_PARTS = {
    "wte.": "embedding",
    "position.": "position",
    "h.attn.": "attention",
    "h.mlp.": "mlp",
    "h.ln_": "norms",
    "ln_f.": "norms",
    "lm_head.": "head",
}
"""Parts of a model, by how the names of their parameters begin."""
_HINTS: Mapping[str, str] = {
    "model": "a smaller model: model.n_embd and n_layer, or the data set's vocabulary and "
    "block_size; several GPUs with train.shard=true",
    "step": "fewer sequences at once: train.micro_batch_size; train.recompute=true; or a smaller "
    "block_size of the data set",
    "batch": "a smaller train.batch_size",
}
"""What helps where a part of a training is the largest."""


def _norm_shapes(config: GPTConfig, name: str) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {f"{name}.weight": (config.n_embd,)}
    if config.norm == "layernorm" and config.bias:
        shapes[f"{name}.bias"] = (config.n_embd,)
    return shapes


def _n_kept(config: GPTConfig, options: TrainOptions, trained: Trained) -> int:
    """Weights, and of those that are trained gradients and two moments.

    Muon keeps one of the blocks' matrices.
    """
    muon = isinstance(options.optimizer, MuonOptions)
    weights = n_parameters(config) + trained.added
    return weights + 3 * trained.all - muon * trained.matrices


def _n_activations(config: GPTConfig, options: TrainOptions, trained: Trained) -> int:
    """Numbers of a token that wait for the backward pass: at least the inputs of the matrices.

    A frozen matrix needs no input for that.
    """
    width = config.n_embd
    if options.recompute:
        return trained.layers * width
    attention = sum(config.qkv_sizes) + config.qkv_sizes[0]
    inputs = 2 * width if trained == all_trained(config) else 0
    return trained.layers * (inputs + attention + config.inner_size)
