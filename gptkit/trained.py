"""What a trained model does: it is opened from its checkpoint, sampled and evaluated."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from gptkit import checkpoint, folder, registry
from gptkit.codec import Codec
from gptkit.decoder import TorchDecoder, evaluating
from gptkit.device import Placement, pick_device, place
from gptkit.errors import PromptError, RunError
from gptkit.folder import RunFolder
from gptkit.generate import generate
from gptkit.model import GPT
from gptkit.plugin import Data
from gptkit.sampler import Sampling

TEXT_TOKENS = 500
"""What is drawn of a sample that could go on for ever, if nobody says how much."""
PREVIEWS = 16
"""Pictures in a preview."""


@dataclass(frozen=True)
class Trained:
    """A model as a checkpoint holds it, with what is needed to talk to it."""

    model: GPT
    codec: Codec
    state: checkpoint.State

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.wte.weight.device


def open_trained(path: Path | None, *, which: str = "last", device: str = "auto") -> Trained:
    """Load a run's checkpoint for sampling or evaluation; the training data stays closed.

    Args:
        path: the run folder; None takes the newest one.
        which: "last", "best" or a step's number.
        device: where the model goes.
    """
    target, _ = pick_device(device)
    step_folder = folder.open_run(path).step_folder(which)
    state = checkpoint.load_state(step_folder)
    record = state.codec
    codec = registry.make_codec(record.name, record.distribution, record.options)
    model = GPT(state.config)
    model.load_weights(checkpoint.load_tensors(step_folder, state))
    return Trained(model.to(target).eval(), codec, state)


@dataclass(frozen=True)
class Drawing:
    """Samples being drawn: what they start with, and a token of every row at a time.

    Iterating `stream` draws; it can be done once.
    """

    codec: Codec
    prompt: str
    starts: list[list[int]]
    stream: Iterator[list[int]]

    def contents(self) -> bytes:
        """Draw to the end; all samples in one file, in the codec's format."""
        rows = zip(self.starts, zip(*self.stream, strict=True), strict=True)
        samples = [[*start, *drawn] for start, drawn in rows]
        return self.codec.sheet(samples, prompt=self.prompt, kept=len(self.starts[0]))


def sample(
    model: GPT,
    codec: Codec,
    prompt: str = "",
    *,
    sampling: Sampling,
    tokens: int | None = None,
    samples: int = 1,
    keep: float = 1.0,
    label: str | None = None,
) -> Drawing:
    """Start drawing samples that continue a prompt; see `generate` for the rule.

    Args:
        model: in evaluation mode.
        codec: reads the prompt.
        prompt: what to continue; with "" and no label, samples start in all the ways there are.
        sampling: the rule's settings.
        tokens: how many to draw; None draws the rest of a picture, or `TEXT_TOKENS` of text.
        samples: rows that are drawn together.
        keep: how much of the prompt to keep, from its beginning.
        label: the class to draw from.

    Raises:
        PromptError: the codec cannot read the prompt, or nothing is left to draw.
    """
    if prompt or label is not None or keep != 1:
        starts = [codec.start(prompt, keep=keep, label=label)] * samples
    else:
        starts = [codec.starts[i % len(codec.starts)] for i in range(samples)]
    if codec.length is not None:
        rest = codec.length - len(starts[0])
        if rest < 1:
            raise PromptError("the prompt is whole: nothing is left to draw", hint="--keep 0.5")
        tokens = min(tokens or rest, rest)
    drawn = generate(
        TorchDecoder(model, samples),
        starts,
        tokens=tokens or TEXT_TOKENS,
        sampling=sampling,
        samples=samples,
    )
    return Drawing(codec, prompt, starts, (chosen.tolist() for chosen in drawn))


def previewer(model: GPT, codec: Codec) -> Callable[[int, int], bytes]:
    """What callbacks get as `state.sample`: a stretch of text, or a sheet of whole pictures."""

    def preview(tokens: int, seed: int) -> bytes:
        sampling = Sampling(temperature=codec.temperature, seed=seed)
        whole = codec.length is not None
        with evaluating(model), torch.compiler.set_stance("force_eager"):  # lengths never repeat
            return sample(
                model,
                codec,
                sampling=sampling,
                tokens=None if whole else tokens,
                samples=PREVIEWS if whole else 1,
            ).contents()

    return preview


def open_with_data(
    path: Path | None, *, which: str, device: str
) -> tuple[Trained, Data, Placement, int]:
    """A trained model with the data, the placement and the batch size that its recipe names.

    Raises:
        RunError: the data is not what the run was trained on.
    """
    run = folder.open_run(path)
    trained = open_trained(run.path, which=which, device=device)
    plugins = registry.build(registry.read_recipe(run.recipe))
    options = plugins.recipe.train.model_copy(update={"device": device})
    data = plugins.dataset.load()
    check_same_data(run, data)
    return trained, data, place(options), options.micro_batch_size or options.batch_size


def check_same_data(run: RunFolder, data: Data) -> None:
    """Raise a RunError where the data changed since the run began."""
    if run.read_environment().get("data_sha256", data.sha256) != data.sha256:
        raise RunError(
            f"{run.path}: the training data is not what this run began with",
            hint=f"restore it, or start anew: gptkit train {folder.quote(run.recipe)}",
        )
