"""Format: a plugin that writes trained models and reads those of other programs.

TrainedModel is what it gets to write, ImportedModel what it has read.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from gptkit.codec import Codec
from gptkit.contract.base import Plugin
from gptkit.contract.dataset import Data
from gptkit.errors import UsageError


class ExportAs(Protocol):
    """Writes the same model in another format."""

    def __call__(self, name: str, path: Path, **options: Any) -> None:
        """Write a new file or folder, in the format of that name with these options."""


def _cannot(name: str, path: Path, **options: Any) -> None:
    raise UsageError(f"{path}: this model cannot be written as {name}, too")


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
        recipe: The recipe of its run, as tables of JSON values.
        about: What an import noted of the model that the training began with, such as a license.
        export: Writes it in another format: `export("onnx", path, dtype="int8")`.
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
    recipe: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    export: ExportAs = _cannot


@dataclass(frozen=True)
class ImportedModel:
    """A model of another program, which becomes a run at step 0.

    Attributes:
        config: Its sizes and its architecture as JSON values: the options of `[model]`, with
            vocab_size and block_size.
        weights: Its tensors by their names in a checkpoint, such as "wte.weight". A value is asked
            for once and soon dropped, so a mapping that reads it then needs little memory.
        codec: Turns prompts into token ids, and token ids into text.
        files: What the run folder has beside its recipe, such as "tokenizer.json".
        dataset: The table `[dataset]` of the recipe of a run folder that has these files.
        about: What is known of the model, JSON values: its source, its license.
        logits: Logits, float32 (T, vocab_size), of token ids (T,), computed from the source itself
            and not from `weights`. They are compared with what the imported model gives.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    codec: Codec
    files: Mapping[str, bytes]
    dataset: Callable[[Path], Mapping[str, Any]]
    about: Mapping[str, Any]
    logits: Callable[[Sequence[int]], NDArray[np.float32]]


class Format(Plugin, ABC):
    """A format of models; an entry point in `gptkit.formats`.

    `gptkit export --to NAME` writes it, `gptkit import` reads it; `--set OPTION=VALUE` sets its
    options.

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

    def written(self, path: Path) -> None:
        """Called when what was written has taken its name, such as to upload it.

        If it raises, what was written stays.

        Args:
            path: the file or folder.
        """

    def opens_as(self, config: Mapping[str, Any]) -> str:
        """What other programs take a model of this config for, such as "LlamaForCausalLM".

        Args:
            config: as in `TrainedModel`.

        Raises:
            UsageError: the format cannot express the model; it names the options of `[model]`.
        """
        return ""

    def reads(self, source: str) -> bool:
        """Whether a source looks like one of this format; it is not opened yet.

        Args:
            source: the path of a file or a folder, or a name that the format knows.
        """
        return False

    def read(self, source: str) -> ImportedModel:
        """Read a model of another program.

        Raises:
            UsageError: the source, or what it describes, cannot be read with this format.
            RunError: it is damaged.
        """
        raise UsageError(f"{source}: this format is only written, not read")
