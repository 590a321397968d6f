"""Whether a training fits into memory, from its sizes alone. Imports torch only if in doubt."""

from gptkit.errors import UsageError
from gptkit.memory import Need
from gptkit.recipe import sizes, tuning
from gptkit.recipe.build import Plugins
from gptkit.recipe.options import GPTConfig

ANYWHERE = 1 << 30
"""Bytes that every computer has."""
MOST = 2**31 - 1
"""The longest context that a model can have."""


def config_of(plugins: Plugins) -> GPTConfig:
    """The model of a recipe whose data is not opened.

    The vocabulary counts as a single token, and the context too if the data set has no option
    `block_size`.
    """
    block_size = getattr(plugins.dataset, "block_size", 1)
    return GPTConfig(
        **plugins.recipe.model.shape(),
        vocab_size=1,
        block_size=max(1, min(block_size, MOST)) if isinstance(block_size, int) else 1,
    )


def warning(plugins: Plugins) -> str | None:
    """That a recipe needs more memory than this computer has; its data is not opened."""
    recipe, config = plugins.recipe, config_of(plugins)
    trained = tuning.find(recipe.model, recipe.lora, config).trained()
    need: Need = sizes.to_train(config, recipe.train, item_size=2, trained=trained)
    if need.size is None or need.size < ANYWHERE:
        return None
    from gptkit.training import device  # takes two seconds

    try:
        there = device.memory(device.pick_device(recipe.train.device)[0])
    except UsageError:  # it is for another computer, which has that device
        return None
    fault = need.fault(there)
    return f"in one process {fault}: {need.hint}" if fault else None
