"""What a trained model does: it is opened from its checkpoint, sampled and evaluated."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from gptkit.runs import checkpoint
from gptkit.runs import run_folder
from gptkit.recipe import registry
from gptkit.codec import Codec
from gptkit.sampling.torch_decoder import TorchDecoder, evaluating, make_decoder
from gptkit.training.device import RunDevice, pick_device, resolve_device
from gptkit.sampling.samples import Samples, SampleRequest
from gptkit.errors import RunError
from gptkit.runs.run_folder import RunFolder
from gptkit.sampling.generate import Decoder, generate
from gptkit.model.gpt import GPT
from gptkit.plugin import Data
from gptkit.sampling.rule import SamplingOptions

PREVIEWS = 16
"""Pictures in a preview."""


@dataclass(frozen=True)
class LoadedModel:
    """A model as a checkpoint holds it, with what is needed to talk to it."""

    model: GPT
    codec: Codec
    state: checkpoint.State

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.wte.weight.device

    @property
    def temperature(self) -> float:
        """Of samples, where nobody asks for one."""
        return self.codec.temperature

    def sample(self, request: SampleRequest, sampling: SamplingOptions, *, streaming: bool = False) -> Samples:
        """Start drawing samples, always token by token; see `sample`."""
        return sample(make_decoder(self.model, request.samples), self.codec, request, sampling)


def load_checkpoint(path: Path | None, *, which: str = "last", device: str = "auto") -> LoadedModel:
    """Load a run's checkpoint for sampling or evaluation; the training data stays closed.

    Args:
        path: the run folder; None takes the newest one.
        which: "last", "best" or a step's number.
        device: where the model goes.
    """
    target, _ = pick_device(device)
    step_folder = run_folder.open_run(path).step_folder(which)
    state = checkpoint.load_state(step_folder)
    record = state.codec
    codec = registry.make_codec(record.name, record.distribution, record.options)
    model = GPT(state.config)
    model.load_weights(checkpoint.load_tensors(step_folder, state))
    return LoadedModel(model.to(target).eval(), codec, state)


def sample(decoder: Decoder, codec: Codec, request: SampleRequest, sampling: SamplingOptions) -> Samples:
    """Start drawing samples; see `generate` for the rule.

    Args:
        decoder: of a model in evaluation mode, made for as many rows as there are samples.
        codec: reads the prompt.
        request: which samples.
        sampling: the rule's settings.

    Raises:
        PromptError: the codec cannot read the prompt, or nothing is left to draw.
    """
    starts = request.starts(codec)
    drawn = generate(
        decoder,
        starts,
        tokens=request.count(starts[0], codec.length),
        sampling=sampling,
        samples=request.samples,
    )
    return Samples(request.prompt, starts, (chosen.tolist() for chosen in drawn))


def previewer(model: GPT, codec: Codec) -> Callable[[int, int], bytes]:
    """What callbacks get as `state.sample`: a stretch of text, or a sheet of whole pictures."""

    def preview(tokens: int, seed: int) -> bytes:
        sampling = SamplingOptions(temperature=codec.temperature, seed=seed)
        whole = codec.length is not None
        request = SampleRequest(tokens=None if whole else tokens, samples=PREVIEWS if whole else 1)
        decoder = TorchDecoder(model, request.samples)
        with evaluating(model), torch.compiler.set_stance("force_eager"):  # lengths never repeat
            return sample(decoder, codec, request, sampling).contents(codec)

    return preview


def open_with_data(
    path: Path | None, *, which: str, device: str
) -> tuple[LoadedModel, Data, RunDevice, int]:
    """A trained model with the data, the placement and the batch size that its recipe names.

    Raises:
        RunError: the data is not what the run was trained on.
    """
    run = run_folder.open_run(path)
    trained = load_checkpoint(run.path, which=which, device=device)
    plugins = registry.build(registry.read_recipe(run.recipe))
    options = plugins.recipe.train.model_copy(update={"device": device})
    data = plugins.dataset.load()
    check_same_data(run, data)
    return trained, data, resolve_device(options), options.micro_batch_size or options.batch_size


def check_same_data(run: RunFolder, data: Data) -> None:
    """Raise a RunError where the data changed since the run began."""
    if run.read_environment().get("data_sha256", data.sha256) != data.sha256:
        raise RunError(
            f"{run.path}: the training data is not what this run began with",
            hint=f"restore it, or start anew: gptkit train {run_folder.quote(run.recipe)}",
        )
