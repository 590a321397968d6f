"""A run that begins with another run's weights: where they come from, and whether they fit."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptkit.codec import Codec
from gptkit.errors import CheckpointError, RunError, UsageError
from gptkit.files import quote
from gptkit.model.gpt import GPT
from gptkit.recipe import codec_record
from gptkit.recipe.options import GPTConfig
from gptkit.recipe.phrases import shown
from gptkit.runs import checkpoint, history, run_folder
from gptkit.runs.run_folder import RunFolder
from gptkit.runs.state import State
from gptkit.runs.tensor_file import TensorFile
from gptkit.runs.weights import load_weights
from gptkit.training import finite
from gptkit.training.sharding import Sharded

WITHOUT_WEIGHTS = {"preset", "dropout"}
"""Fields of a model's description that change no weights."""


@dataclass(frozen=True)
class Origin:
    """The checkpoint whose weights a new run begins with."""

    run: Path
    state: State
    tensors: TensorFile
    weights: str | None = None
    """The name of the set of weights; None: the model's own."""

    def __str__(self) -> str:
        return f"step {self.state.step} of {self.run}"

    def record(self) -> dict[str, Any]:
        """What environment.json says about it, for `find_again`."""
        return {
            "run": str(self.run.resolve()),
            "step": self.state.step,
            "weights": self.weights,
            "sha256": self.sha256,
        }

    @property
    def sha256(self) -> str:
        """Digest of the file with the weights."""
        return self.state.sha256[f"{checkpoint.weights_file(self.weights)}.safetensors"]

    def check(self, config: GPTConfig, codec: Codec) -> None:
        """Refuse a model of another shape, or a data set with another codec.

        Raises:
            UsageError: names what differs.
        """
        faults = list(_codec_faults(self.state, codec) or _shape_faults(self.state, config))
        if faults:
            raise UsageError(
                "\n".join(f"--from {self.run}: {fault}" for fault in faults),
                hint="make the recipe's like the run's, or train without --from",
            )

    def give(self, model: GPT) -> None:
        """Load the weights into a new model that fits. Under `shard = true` all ranks must.

        Raises:
            DivergedError: they are not finite.
        """
        model.load_weights(Sharded(self.tensors, model))
        finite.check_loaded(model, f"--from {self.run}")


def find(path: Path, which: str | int = "last", weights: str | None = None) -> Origin:
    """Read the weights of a run's checkpoint.

    Args:
        path: the run folder.
        which: "last", "best" or a step's number.
        weights: the name of a further set of weights; None: the model's own.

    Raises:
        GptkitError: there is none, or it is damaged.
    """
    run = run_folder.open_run(path)
    state, tensors = run.read_step(which, lambda folder: load_weights(folder, weights))
    return Origin(run.path, state, tensors, weights)


def find_again(run: RunFolder) -> Origin | None:
    """The origin that a run's environment.json names, if it names one.

    Raises:
        RunError: it is gone, or environment.json is damaged.
    """
    environment = run.read_environment()
    try:
        began = history.began(environment)
    except ValueError:
        environment = {}
    if not environment:
        raise RunError(
            f"{run.environment}: damaged, so that the weights that the run began with are unknown",
            hint=f"train it again: gptkit train {quote(run.recipe)}, with --from if it had one",
        )
    if began is None:
        return None
    with suppress(CheckpointError, RunError, UsageError):
        found = find(Path(began.run), began.step, began.weights)
        if found.sha256 == began.sha256:
            return found
    raise RunError(
        f"{run.path}: the weights that it began with, {began}, are gone",
        hint=f"begin with others: gptkit train {quote(run.recipe)} --from RUN",
    )


def _codec_faults(state: State, codec: Codec) -> list[str]:
    theirs, ours = state.codec, codec_record.record_codec(codec)
    if theirs.name != ours.name:
        return [f'its codec is "{theirs.name}", the recipe\'s data set has "{ours.name}"']
    return list(_differences(theirs.options, ours.options, f"codec ({ours.name})."))


def _shape_faults(state: State, config: GPTConfig) -> list[str]:
    theirs, ours = state.config.model_dump(), config.model_dump()
    equal = set(WITHOUT_WEIGHTS)
    if config.position == "rotary":  # no weights, and any context
        equal.add("block_size")
    if state.config.kv_heads == config.kv_heads:
        equal.add("n_kv_head")
    if state.config.inner_size == config.inner_size:
        equal.add("n_inner")
    return list(_differences(theirs, ours | {key: theirs[key] for key in equal}, ""))


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], place: str) -> Iterator[str]:
    for key in dict.fromkeys([*theirs, *ours]):
        its, own = theirs.get(key), ours.get(key)
        if its != own:
            yield f"its {place}{key} is {shown(its)}, the recipe's {shown(own)}"
