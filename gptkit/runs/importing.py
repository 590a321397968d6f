"""Import a model of another program: a run folder at step 0, whole or not at all."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from gptkit import __version__
from gptkit.codec import Codec
from gptkit.contract.codec_check import check_loaded
from gptkit.contract.comparison import TOLERANCE
from gptkit.errors import PluginError, RunError
from gptkit.files import write_atomically, write_json
from gptkit.memory import Need, give_back
from gptkit.plugin import Format, ImportedModel, compare_logits
from gptkit.recipe import build, codec_record, sizes
from gptkit.recipe.options import GPTConfig
from gptkit.recipe.problems import first_fault
from gptkit.recipe.recipe import Recipe
from gptkit.recipe.table import Report
from gptkit.runs import changes, checkpoint_writer, history, new_folder, run_folder
from gptkit.runs.loaded import load_step_folder
from gptkit.runs.run_folder import RunFolder
from gptkit.runs.state import State
from gptkit.staging import staged

IMPORT = Need("this import", "import it on a computer with more memory")
SENTENCE = "Once upon a time, in 1977, there was a naïve model: it said 'Hello, world!' twice."
LEARNING_RATE = 1e-4
"""With which the recipe of an import trains it further: what is learned bears less than noise."""
MOST_TOKENS = 32
"""Of the text with which an import is tested."""


class CheckedWeights(Mapping[str, Tensor]):
    """The tensors of an imported model in float32, each read and checked when it is asked for.

    Raises:
        RunError: one is missing, or is not what the config describes, or is not finite.
    """

    def __init__(self, source: str, imported: ImportedModel, config: GPTConfig) -> None:
        self._source, self._tensors = source, imported.weights
        self._shapes = sizes.parameter_shapes(config)
        for name in self._shapes.keys() ^ set(imported.weights):
            kind = "is missing" if name in self._shapes else "is no weight of this model"
            raise RunError(f"{source}: {name[:80]} {kind}")

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if tuple(tensor.shape) != self._shapes[name]:
            shapes = f"{[*tensor.shape]}, its config describes {[*self._shapes[name]]}"
            raise RunError(f"{self._source}: {name} has the shape {shapes}")
        if not tensor.isfinite().all():
            raise RunError(f"{self._source}: {name} holds numbers that are not finite")
        return tensor.detach().float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def on_meta(self) -> dict[str, Tensor]:
        """Tensors of the same shapes that take no memory."""
        return {name: torch.empty(s, device="meta") for name, s in self._shapes.items()}


@dataclass(frozen=True)
class Expected:
    """What an imported model has to compute, said by its format from the source itself."""

    ids: list[int]
    """Token ids (T,)."""
    logits: NDArray[Any]
    """(T, vocab_size)."""

    @classmethod
    def of(cls, imported: ImportedModel, config: GPTConfig) -> Self:
        """Ask the format of a model with this config."""
        ids = _test_ids(imported.codec, config)
        return cls(ids, np.asarray(imported.logits(ids)))

    def compare(self, source: str, found: NDArray[Any], *, tolerance: float = TOLERANCE) -> float:
        """The largest difference of logits, in parts of the largest one.

        Raises:
            ExportError: it is too large.
        """
        hint = "this is a fault of gptkit or of the format's plugin; nothing was kept"
        return compare_logits(source, self.logits, found, hint=hint, tolerance=tolerance)


@IMPORT.explained()
def import_model(
    source: str, format_: Format, *, out: Path | None = None, report: Report
) -> RunFolder:
    """Make a run folder at step 0 of a model of another program.

    What it computes is compared with what the format computes from the source itself.

    Args:
        source: the path of a file or a folder, or a name that the format knows.
        format_: reads it.
        out: the run folder; None makes a new one below `runs/`.
        report: shows a line of text.

    Raises:
        UsageError: the source or the place is wrong.
        RunError: the source is damaged.
        ExportError: the imported model computes something else than the source.
    """
    if out:
        new_folder.check_unused(out)
    imported = format_.read(source)
    config = config_of(imported, format_)
    weights = CheckedWeights(source, imported, config)
    record = codec_record.record_codec(imported.codec)
    with new_folder.claim(out, _name(source)) as run:
        recipe = _recipe(run, source, imported, config)
        state = State(
            gptkit=__version__, config=config, dataset=recipe.dataset.use, codec=record, step=0,
            tokens=0, val_loss=None, val_step=None, optimizer_groups=[], callbacks={},
        )  # fmt: skip
        expected = Expected.of(imported, config)
        with staged(run.checkpoints) as folder:
            step_folder = checkpoint_writer.save(
                folder, state, {"model": weights}, shapes={"model": weights.on_meta()}
            )
            give_back()  # what the writing of large tensors has freed
            found = load_step_folder(step_folder).logits(np.array(expected.ids))
            difference = expected.compare(source, found)
        for name, contents in imported.files.items():
            write_atomically(run.path / name, contents)
        about = {"format": history.FORMAT, "trained": run_folder.now()}  # no recipe is trained yet
        write_json(run.environment, about | {"imported": {"source": source, **imported.about}})
        changes.write_recipe(run, recipe)
    millions = sizes.n_parameters(config) / 1e6
    report(
        f"{run.path}: {millions:.2f} M parameters of {source}; logits differ by at most "
        f"{difference:.1e} of the largest, greedy tokens are equal"
    )
    return run


def config_of(imported: ImportedModel, format_: Format) -> GPTConfig:
    """The sizes of an imported model, checked together with its codec.

    Raises:
        PluginError: the format gave something that does not fit.
    """
    try:
        config = GPTConfig.model_validate(imported.config)
    except ValidationError as error:
        kind = type(format_).__name__
        raise PluginError(f"{kind}.read: config: {first_fault(error)}") from None
    check_loaded(imported.codec, config.vocab_size)
    return config


def _name(source: str) -> str:
    """The beginning of the run folder's name."""
    last = source.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last.partition("@")[0]).strip("-.") or "imported"


def _recipe(run: RunFolder, source: str, imported: ImportedModel, config: GPTConfig) -> Recipe:
    """The complete recipe with which the model can be trained further."""
    model = config.model_dump(mode="json", exclude={"vocab_size", "block_size"}, exclude_none=True)
    train = {"optimizer": {"use": "adamw", "learning_rate": LEARNING_RATE}}
    table = {"dataset": dict(imported.dataset(run.path)), "model": model, "train": train}
    return build.build(build.read(table)).recipe


def _test_ids(codec: Codec, config: GPTConfig) -> list[int]:
    """A sentence if the codec can encode it, and some ids from all over the vocabulary."""
    try:
        ids = codec.encode(SENTENCE)
    except Exception:  # a codec need not know these characters
        ids = codec.encode("")
    spread = np.linspace(0, config.vocab_size - 1, 8).astype(int).tolist()
    return [*ids[: MOST_TOKENS - len(spread)], *spread][: config.block_size]
