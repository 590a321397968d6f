"""Load a run's checkpoint, for sampling, evaluation and export."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gptkit.codec import Codec
from gptkit.errors import DataError, RunError
from gptkit.files import quote
from gptkit.model.gpt import GPT
from gptkit.plugin import Data
from gptkit.recipe import build, codec_record, sizes
from gptkit.recipe.build import Plugins
from gptkit.runs import changes, run_folder
from gptkit.runs.checkpoint import weights_file
from gptkit.runs.run_folder import RunFolder
from gptkit.runs.state import State
from gptkit.runs.weights import load_weights, make_codec, map_weights
from gptkit.sampling.decoded import DecodedModel
from gptkit.sampling.model import check_ids
from gptkit.sampling.rule import Floats, Ints
from gptkit.sampling.torch_decoder import TorchDecoder, make_decoder
from gptkit.training import finite
from gptkit.training.device import RunDevice, memory, pick_device, resolve_device


class LoadedModel(DecodedModel):
    """The model of a checkpoint, with its codec.

    Args:
        model: on its device, in evaluation mode.
        codec: of the data that it was trained on.
        state: of the checkpoint.
        weights: the name of the set of weights that it has; None: the model's own.
    """

    def __init__(
        self, model: GPT, codec: Codec, state: State, *, weights: str | None = None
    ) -> None:
        super().__init__(model.config, codec)
        self.model, self.state, self.weights = model, state, weights

    def make_decoder(self, batch_size: int) -> TorchDecoder:
        """The fastest decoder for the device that the model is on; it may record a CUDA graph."""
        return make_decoder(self.model, batch_size)

    def memory(self) -> int | None:
        """Bytes of memory of the device."""
        return memory(self.device)

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return self.model.wte.weight.device

    @property
    def val_loss(self) -> float | None:
        """The latest validation loss of these weights during training, in nats per token."""
        state = self.state
        return state.val_losses.get(self.weights) if self.weights else state.val_loss

    @property
    def weights_sha256(self) -> str:
        """Digest of the checkpoint's file with these weights."""
        return self.state.sha256[f"{weights_file(self.weights)}.safetensors"]

    @property
    def provider(self) -> None:
        """None: torch runs the model."""

    @torch.inference_mode()
    def logits(self, tokens: Ints) -> Floats:
        """Unnormalised log-probabilities of the token after each token, (T, vocab_size)."""
        found: Floats = self.model.logits(self._row(tokens))[0].float().cpu().numpy()
        return found

    @torch.inference_mode()
    def features(self, tokens: Ints) -> Floats:
        """The residual stream after the last norm, (T, n_embd)."""
        found: Floats = self.model.features(self._row(tokens))[0].float().cpu().numpy()
        return found

    def _row(self, tokens: Ints) -> torch.Tensor:
        check_ids(tokens, self.model.config.vocab_size, most=self.block_size)
        return torch.from_numpy(tokens.astype(np.int64))[None].to(self.device)


@dataclass(frozen=True)
class LoadedRun:
    """A run's model together with the data and the settings of its recipe."""

    model: LoadedModel
    data: Data
    run_device: RunDevice
    batch_size: int
    """Sequences per forward pass."""


def load_checkpoint(
    path: Path | None,
    *,
    checkpoint: str | int = "last",
    weights: str | None = None,
    device: str = "auto",
) -> LoadedModel:
    """Load a run's model; the training data is not opened.

    Args:
        path: the run folder; None takes the newest one.
        checkpoint: "last", "best" or a step's number.
        weights: the name of a further set of weights, such as "ema"; None: the model's own.
        device: the device to put the model on.

    Raises:
        UsageError: the checkpoint has no such weights.
    """
    target, _ = pick_device(device)
    step_folder, state, tensors = run_folder.open_run(path).read_step(
        checkpoint, lambda folder: (folder, *load_weights(folder, weights))
    )
    return _load(step_folder, state, tensors, target, weights)


def load_step_folder(step_folder: Path) -> LoadedModel:
    """The model of a step folder on the CPU, in the memory of its file if that is of float32.

    Raises:
        DivergedError: the weights are not finite.
    """
    state, arrays = map_weights(step_folder, None)
    if arrays is None:
        state, tensors = load_weights(step_folder, None)
        return _load(step_folder, state, tensors, torch.device("cpu"), None)
    loaded = of_arrays(arrays, make_codec(step_folder, state), state, weights=None)
    finite.check_loaded(loaded.model, str(step_folder))
    return loaded


def of_arrays(
    arrays: Mapping[str, NDArray[Any]], codec: Codec, state: State, *, weights: str | None
) -> LoadedModel:
    """The model of weights that were read and checked before, on the CPU, in their memory."""
    with torch.device("meta"):
        model = GPT(state.config, seed=None)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie()
    return LoadedModel(model.eval(), codec, state, weights=weights)


def load_run(
    path: Path | None,
    *,
    checkpoint: str | int = "last",
    weights: str | None = None,
    device: str = "auto",
) -> LoadedRun:
    """Load a run's model and the data that its recipe names; see `load_checkpoint`.

    Raises:
        RunError: the data is not what the run was trained on.
    """
    run = run_folder.open_run(path)
    model = load_checkpoint(run.path, checkpoint=checkpoint, weights=weights, device=device)
    plugins = build.without_callbacks(run.recipe)
    options = plugins.recipe.train.model_copy(update={"device": device})
    data = _load_data(run, plugins)
    check_same_codec(run, model.codec, data, imported=model.state.imported)
    batch_size = options.micro_batch_size or options.batch_size
    run_device = resolve_device(options, width=plugins.recipe.model.n_embd, before=run.cpu_dtype)
    return LoadedRun(model, data, run_device, batch_size)


def load_data(path: Path) -> Data:
    """The data that a run's recipe names.

    Raises:
        RunError: it is not what the run was trained on.
    """
    run = run_folder.open_run(path)
    return _load_data(run, build.without_callbacks(run.recipe))


def check_same_data(run: RunFolder, data: Data) -> None:
    """Raise a RunError if the data changed since the run started."""
    if run.read_environment().get("data_sha256", data.sha256) != data.sha256:
        raise RunError(
            f"{run.path}: the training data is not the data that this run started with",
            hint=f"restore the data, or start again: gptkit train {quote(run.recipe)}",
        )


def check_same_codec(run: RunFolder, codec: Codec, data: Data, *, imported: bool = False) -> None:
    """Raise a RunError if the data has other tokens than a checkpoint, whose codec is given.

    The data of an imported model may begin and end texts in another way.
    """
    same = codec_record.have_same_tokens(data.codec, codec) if imported else data.codec == codec
    if not same:
        raise RunError(
            f"{run.path}: the data has another codec than the checkpoint: other tokens",
            hint="restore the data and what makes its tokens, or correct dataset in "
            f"{quote(run.recipe)}",
        )


def _load(
    step_folder: Path,
    state: State,
    tensors: Mapping[str, torch.Tensor],
    device: torch.device,
    weights: str | None,
) -> LoadedModel:
    codec = make_codec(step_folder, state)
    model = _build(state, tensors, device)
    finite.check_loaded(model, str(step_folder))
    return LoadedModel(model, codec, state, weights=weights)


def _build(state: State, tensors: Mapping[str, torch.Tensor], device: torch.device) -> GPT:
    """The model of a checkpoint on a device, in evaluation mode."""
    need = sizes.to_load(state.config)
    need.check(memory(device))
    with need.explained():
        model = GPT(state.config, seed=None)
        model.load_weights(tensors)
    return model.to(device).eval()


def _load_data(run: RunFolder, plugins: Plugins) -> Data:
    changes.check_dataset(run, plugins.recipe, changeable=plugins.changeable)
    try:
        data = plugins.load_data()
    except DataError as error:
        error.add_note(f"the data is named in {run.recipe}")
        raise
    check_same_data(run, data)
    return data
