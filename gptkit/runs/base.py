"""The weights beside which a run's adapters are trained: a file of its own in the run folder.

So a resumed run begins with just these, even if the run that they came from is gone.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError

from gptkit.codec import Codec
from gptkit.errors import CheckpointError
from gptkit.files import digest
from gptkit.model.gpt import GPT
from gptkit.recipe import sizes
from gptkit.recipe.adapters import is_adapter
from gptkit.recipe.options import GPTConfig
from gptkit.runs import checkpoint_writer
from gptkit.runs.run_folder import RunFolder
from gptkit.runs.tensor_file import TensorFile
from gptkit.runs.weights import fault_of
from gptkit.training import finite
from gptkit.training.distributed import Ranks
from gptkit.training.sharding import Sharded

FILE = "base.safetensors"


@dataclass(frozen=True)
class Base:
    """The frozen weights of a run with adapters."""

    path: Path
    expected: str | None = None
    """Digest of the file, which a checkpoint names; None takes what is there."""

    def keep(self, model: GPT, ranks: Ranks) -> None:
        """Write the weights of a model, without its adapters.

        Args:
            model: that is going to be trained.
            ranks: those that hold parts of the tensors; all of them call this.

        Raises:
            CheckpointError: the disk is full or not writable.
        """
        weights = {n: w.detach() for n, w in model.weights().items() if not is_adapter(n)}
        checkpoint_writer.save_one(self.path, weights, ranks)

    @cached_property
    def sha256(self) -> str:
        """Digest of the file.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            return digest(self.path)
        except OSError as error:
            raise self._damaged(error.strerror or str(error)) from error

    def check(self, config: GPTConfig, codec: Codec) -> None:
        """Refuse a file whose weights are not those of the model.

        Raises:
            CheckpointError: it is damaged or not the one of the checkpoint.
        """
        self._open(config)

    def give(self, model: GPT) -> None:
        """Load the weights into a model. Under `shard = true` all ranks must.

        Raises:
            CheckpointError: the file is damaged or not the one of the checkpoint.
            DivergedError: the weights are not finite.
        """
        model.load_weights(Sharded(self._open(model.config), model))
        finite.check_loaded(model, str(self.path))

    def _open(self, config: GPTConfig) -> TensorFile:
        if self.expected not in (None, self.sha256):
            raise self._damaged("its sha256 is not the one in state.json")
        try:
            tensors = TensorFile(self.path)
        except (OSError, SafetensorError) as error:
            raise self._damaged(str(error)) from error
        shapes = sizes.parameter_shapes(config)
        for name in shapes.keys() ^ tensors.keys():
            raise self._damaged(f"{name[:80]} is missing, or is no weight of the model")
        for name, entry in tensors.entries.items():
            if fault := fault_of(entry, shapes[name]):
                raise self._damaged(f"{name} {fault}")
        return tensors

    def _damaged(self, fault: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: damaged: {fault}",
            hint="the adapters cannot be trained further without it; the checkpoints have plain "
            "weights, which another run can begin with: --from",
        )


def of(run: RunFolder, expected: str | None = None) -> Base:
    """The place of a run's base."""
    return Base(run.path / FILE, expected)
