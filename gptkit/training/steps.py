"""How many steps a training takes: written in the recipe, or computed from its tokens or epochs."""

import math
from fractions import Fraction

from gptkit.recipe.options import TrainOptions


def total_steps(options: TrainOptions, *, block_size: int, windows: int, stride: int) -> int:
    """The steps of a whole training.

    Args:
        options: the recipe's; one of steps, tokens and epochs is set.
        block_size: target tokens of a window.
        windows: the training split's windows or items.
        stride: step between the windows of one pass over it.

    Returns:
        `steps`, or the fewest steps that see so many tokens, or so many windows.
    """
    if options.steps:
        return options.steps
    if options.tokens:
        return -(-options.tokens // (options.batch_size * block_size))
    a_pass = -(-windows // stride)
    epochs = Fraction(str(options.epochs))  # as it is written: 0.1 is a tenth
    return math.ceil(epochs * a_pass / options.batch_size)
