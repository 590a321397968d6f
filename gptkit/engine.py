"""The engine that draws from a checkpoint: torch, or onnxruntime, which is faster on a CPU.

Choosing and drawing with onnxruntime imports no torch.
"""

import platform
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptkit import memory
from gptkit.codec import Codec
from gptkit.errors import DivergedError, ModelFileError, UsageError
from gptkit.onnx.runtime.decoder import OnnxDecoder, WeightsSession
from gptkit.onnx.runtime.providers import gpus, provider
from gptkit.recipe import sizes
from gptkit.runs import run_folder
from gptkit.runs.state import State
from gptkit.runs.weights import make_codec, map_weights
from gptkit.sampling.decoded import LOADED, TRIED, DecodedModel
from gptkit.sampling.generate import Decoder
from gptkit.sampling.model import Model
from gptkit.sampling.rule import Floats, Ints


class CheckpointModel(DecodedModel):
    """The model of a checkpoint, drawn from in onnxruntime; torch measures texts.

    Args:
        session: of the weights.
        arrays: the weights by name.
        codec: of the data that it was trained on.
        state: of the checkpoint.
        weights: the name of the set of weights that it has; None: the model's own.
    """

    def __init__(
        self,
        session: WeightsSession,
        arrays: Mapping[str, NDArray[Any]],
        codec: Codec,
        state: State,
        *,
        weights: str | None,
    ) -> None:
        super().__init__(state.config, codec)
        self.session, self.arrays, self.state, self.weights = session, arrays, state, weights

    def make_decoder(self, batch_size: int) -> Decoder:
        """A decoder for that many rows."""
        if "model" in vars(self):  # whoever has the module may change it
            by_torch: Decoder = self.measuring.make_decoder(batch_size)
            return by_torch
        return OnnxDecoder(self.session, batch_size)

    def memory(self) -> int | None:
        """Bytes of memory that this process may use."""
        return memory.total()

    @property
    def provider(self) -> str:
        """The execution provider of onnxruntime."""
        return provider(self.session.session)

    @cached_property
    def measuring(self) -> Any:
        """The same model in torch, a `LoadedModel`; made when it is needed first."""
        from gptkit.runs import loaded
        from gptkit.training.process_state import untouched

        with untouched():
            return loaded.of_arrays(self.arrays, self.codec, self.state, weights=self.weights)

    @cached_property
    def model(self) -> Any:
        """The module in torch, which from now on draws, too."""
        self._decoders = {}  # one that still draws goes back to those before
        return self.measuring.model

    def logits(self, tokens: Ints) -> Floats:
        """Unnormalised log-probabilities of the token after each token, (T, vocab_size)."""
        found: Floats = self.measuring.logits(tokens)
        return found

    def features(self, tokens: Ints) -> Floats:
        """The residual stream after the last norm, (T, n_embd)."""
        found: Floats = self.measuring.features(tokens)
        return found


def load_model(
    path: Path | None,
    *,
    checkpoint: str | int,
    weights: str | None,
    device: str,
    engine: str,
) -> tuple[Model, str]:
    """Load a run's model into an engine; arguments as for `gptkit.load`.

    Returns:
        The model, and the engine with the reason why it was taken.

    Raises:
        UsageError: the engine cannot draw from this model.
    """
    unable = "asked for" if engine == "torch" else _needs_torch(device)
    found: CheckpointModel | str | None = None
    if unable is None:
        found = _load_into_onnxruntime(path, checkpoint, weights)
        if isinstance(found, CheckpointModel):
            asked = "asked for" if engine == "onnx" else "faster than torch on a CPU"
            return found, f"onnxruntime: {asked}"
        unable = found
    if engine == "onnx":
        instead = "--device cpu" if device == "auto" and found is None else "--engine torch"
        raise UsageError(f"engine onnx: {unable}", hint=f"{instead}, or --engine auto")
    from gptkit.runs.loaded import load_checkpoint
    from gptkit.training.process_state import untouched

    with untouched():
        model = load_checkpoint(path, checkpoint=checkpoint, weights=weights, device=device)
    return model, f"torch: {unable}"


def _needs_torch(device: str) -> str | None:
    """Why only torch can use a device; None if it is the CPU."""
    if device == "cpu":
        return None
    if device != "auto":
        return f'device "{device}" is not the CPU'
    built = version("torch")
    if "rocm" in built or (gpus() and "+cpu" not in built):
        return 'device "auto" may take a GPU'
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    return "an Apple GPU" if apple else None


def _load_into_onnxruntime(
    path: Path | None, checkpoint: str | int, weights: str | None
) -> CheckpointModel | str:
    """The model, or why onnxruntime cannot draw from it."""
    step_folder, state, arrays = run_folder.open_run(path).read_step(
        checkpoint, lambda folder: (folder, *map_weights(folder, weights))
    )
    if arrays is None:
        return "weights that are not float32"
    if fault := sizes.not_fused(state.config):
        return fault
    codec, need = make_codec(step_folder, state), sizes.to_load(state.config)
    need.check(memory.total())
    try:
        with need.explained():
            session = WeightsSession(state.config, arrays, str(step_folder))
            _check_finite(session, arrays, str(step_folder))
    except ModelFileError as error:
        return str(error)
    return CheckpointModel(session, arrays, codec, state, weights=weights)


def _check_finite(session: WeightsSession, arrays: Mapping[str, NDArray[Any]], place: str) -> None:
    """Refuse weights or logits that are not finite, as `training.finite.check_loaded` does."""
    if not all(np.isfinite([array.min(), array.max()]).all() for array in arrays.values()):
        raise DivergedError(f"{place}: a weight is not finite", hint=LOADED)
    config = session.config
    tokens = np.arange(min(config.block_size, TRIED), dtype=np.int64)[None] % config.vocab_size
    if not np.isfinite(OnnxDecoder(session, 1).prefill(tokens)).all():
        raise DivergedError(f"{place}: the loss is not finite", hint=LOADED)
