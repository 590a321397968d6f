"""How many parameters a model has and how much memory it needs, from its sizes alone.

All numbers of bytes are the least: what is counted is needed in any case, and a little more is.
"""

from collections.abc import Mapping

from gptkit.memory import Need
from gptkit.recipe.options import GPTConfig, MuonOptions, TrainOptions

NUMBER = 4  # bytes of a weight, a gradient or a moment
TOKEN = 8  # bytes of a token id in a batch


def n_parameters(config: GPTConfig) -> int:
    """Number of parameters, a tied head counted once."""
    width, embedding = config.n_embd, config.vocab_size * config.n_embd
    heads = 1 if config.tie_embeddings else 2
    positions = config.block_size * width if config.position == "learned" else 0
    norm = width * (2 if config.norm == "layernorm" and config.bias else 1)
    blocks = config.n_layer * (_n_matrices(config) + 2 * norm + config.bias * _n_outputs(config))
    return heads * embedding + positions + blocks + norm


def to_train(
    config: GPTConfig, options: TrainOptions, *, item_size: int = NUMBER, processes: int = 1
) -> Need:
    """The memory of a training in each of its processes, with all of its parameters trained.

    Args:
        config: of the model.
        options: the recipe's table `[train]`.
        item_size: bytes of a number in forward passes: 2 in bfloat16.
        processes: that train together.
    """
    parts = dict.fromkeys(_HINTS, 0)
    parts["model"] = NUMBER * _n_kept(config, options) // (processes if options.shard else 1)
    rows = max(1, (options.micro_batch_size or options.batch_size // processes))
    tokens = rows * config.block_size
    parts["step"] = tokens * (
        item_size * _n_activations(config, options) + NUMBER * config.vocab_size
    )
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


_HINTS: Mapping[str, str] = {
    "model": "a smaller model: model.n_embd and n_layer, or the data set's vocabulary and "
    "block_size; several GPUs with train.shard=true",
    "step": "fewer sequences at once: train.micro_batch_size; train.recompute=true; or a smaller "
    "block_size of the data set",
    "batch": "a smaller train.batch_size",
}
"""What helps where a part of a training is the largest."""


def _n_matrices(config: GPTConfig) -> int:
    """Weights in the matrices of a block."""
    width, inner = config.n_embd, config.inner_size
    qkv = width + 2 * config.kv_heads * config.head_size
    return width * (qkv + width) + width * inner * (_gated(config) + 1)


def _n_outputs(config: GPTConfig) -> int:
    """Numbers that the matrices of a block compute for a token, as many as they have biases."""
    width = config.n_embd
    return 3 * width + 2 * config.kv_heads * config.head_size + _gated(config) * config.inner_size


def _n_kept(config: GPTConfig, options: TrainOptions) -> int:
    """Weights, their gradients and two moments; Muon keeps one of the blocks' matrices."""
    saved = isinstance(options.optimizer, MuonOptions) * config.n_layer * _n_matrices(config)
    return 4 * n_parameters(config) - saved


def _n_activations(config: GPTConfig, options: TrainOptions) -> int:
    """Numbers of a token that wait for the backward pass: at least the inputs of the matrices."""
    width = config.n_embd
    if options.recompute:
        return config.n_layer * width
    qkv = width + 2 * config.kv_heads * config.head_size
    return config.n_layer * (3 * width + qkv + config.inner_size)


def _gated(config: GPTConfig) -> int:
    return 2 if config.mlp == "swiglu" else 1
