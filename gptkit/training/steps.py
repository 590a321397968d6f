"""How many steps a training takes: written in the recipe, or computed from its tokens or epochs."""

import math
from fractions import Fraction

from gptkit.errors import UsageError
from gptkit.recipe.options import LENGTHS, TrainOptions


def total_steps(options: TrainOptions, *, block_size: int, windows: int, stride: int) -> int:
    """The steps of a whole training.

    Args:
        options: the recipe's; one of steps, tokens and epochs is set.
        block_size: target tokens of a window.
        windows: the training split's windows or items.
        stride: step between the windows of one pass over it.

    Returns:
        `steps`, or the fewest steps that see so many tokens, or so many windows.

    Raises:
        UsageError: these are more than an int64 can count.
    """
    if options.steps:
        steps = options.steps
    elif options.tokens:
        steps = -(-options.tokens // (options.batch_size * block_size))
    else:
        a_pass = -(-windows // stride)
        epochs = Fraction(str(options.epochs))  # as it is written: 0.1 is a tenth
        steps = math.ceil(epochs * a_pass / options.batch_size)
    if steps >= 2**63:
        name = next(name for name in LENGTHS if getattr(options, name))
        raise UsageError(
            f"train.{name}: is {getattr(options, name)}, which makes 2**63 steps or more",
            hint="train.steps = 1000 is the default",
        )
    return steps
