"""Format: a plugin that writes trained models; and TrainedModel, what it gets to write."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from gptkit.codec import Codec
from gptkit.contract.base import Plugin
from gptkit.contract.dataset import Data
from gptkit.errors import UsageError


@dataclass(frozen=True)
class TrainedModel:
    """A trained model with all that a format may write of it.

    Attributes:
        module: The model, in evaluation mode, float32, on the CPU. `module(x, y)` is the loss and
            `module.logits(x)` are the logits, (B, T, vocab_size), of token ids (B, T).
        config: Its sizes and its architecture as JSON values, such as `n_layer` and `norm`.
        weights: Its tensors by their names in a checkpoint, such as "wte.weight".
        codec: Turns prompts into token ids, and token ids into text, images or other files.
        dataset: The name of the data set in the recipe.
        step: Updates done.
        val_loss: Loss of the latest evaluation, in nats per token; None if there was none.
        weights_sha256: Digest of the file that the weights come from.
        load_data: Loads the data that the model was trained on, as `Dataset.load` does.
    """

    module: nn.Module
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    codec: Codec
    dataset: str
    step: int
    val_loss: float | None
    weights_sha256: str
    load_data: Callable[[], Data]


class Format(Plugin, ABC):
    """A file format for trained models; an entry point in `gptkit.formats`.

    `gptkit export --to NAME` writes it; `--set OPTION=VALUE` sets its options.

    Attributes:
        suffix: File name ending, e.g. ".npz"; "" for a folder.
    """

    suffix: ClassVar[str]

    def default_path(self) -> Path:
        """Where to write if nothing is said."""
        return Path(f"model{self.suffix}")

    def check(self, path: Path) -> None:
        """Refuse options or a place before the model is loaded.

        A file that exists is replaced; a folder is only if it is empty. A format that writes
        folders overrides this, so that it may replace what it wrote itself.

        Raises:
            UsageError: says what is wrong.
        """
        if path.is_dir() and any(path.iterdir()):
            raise UsageError(f"{path}: already exists", hint="choose another place: --out PATH")

    @abstractmethod
    def write(self, model: TrainedModel, path: Path) -> None:
        """Write the model to a new file or folder, which takes its name when this returns.

        Args:
            model: what to write.
            path: does not exist; its name is the one that was asked for, in a temporary folder.

        Raises:
            ExportError: what was written is not equal to the model.
        """
