"""`gptkit eval`: the loss of a run's model and, if wanted, its accuracy as a classifier."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from gptkit.analysis.classification import classify
from gptkit.codec import TextCodec
from gptkit.data.order import walk, windows_of
from gptkit.data.progress import progress
from gptkit.data.split import IGNORE
from gptkit.memory import Need
from gptkit.runs.loaded import LoadedModel, LoadedRun, load_run
from gptkit.sampling.decoded import LOADED
from gptkit.training import finite
from gptkit.training.evaluate import Evaluation, evaluate

EVALUATION = Need(
    "this evaluation", "fewer sequences at once: train.micro_batch_size in recipe.toml"
)


@dataclass(frozen=True)
class RunEvaluation(Evaluation):
    """What `gptkit eval` measures on a run's validation split: the loss and more."""

    model: LoadedModel = field(repr=False)
    accuracy: float | None
    """From `classify`; None if it was not requested."""
    bits_per_byte: float | None
    """The loss of text in bits per byte of UTF-8, comparable between codecs; None for images."""


@EVALUATION.explained()
def evaluate_run(
    path: Path | None,
    *,
    checkpoint: str | int = "last",
    weights: str | None = None,
    device: str = "auto",
    by_class: bool = False,
) -> RunEvaluation:
    """Measure a run's model on the whole validation split.

    Args:
        path: the run folder; None takes the newest one.
        checkpoint: "last", "best" or a step's number.
        weights: the name of a further set of weights; None: the model's own.
        device: where to compute.
        by_class: whether to measure the accuracy, too.
    """
    run = load_run(path, checkpoint=checkpoint, weights=weights, device=device)
    accuracy = classify(run) if by_class else None
    result = _measured(run)
    finite.require_finite(result.loss, "the validation loss", hint=LOADED)
    return RunEvaluation(
        loss=result.loss,
        tokens=result.tokens,
        model=run.model,
        accuracy=accuracy,
        bits_per_byte=_bits_per_byte(run, result),
    )


def _measured(run: LoadedRun) -> Evaluation:
    """The loss over the whole validation split."""
    val = run.data.val
    with progress("measuring the loss", total=windows_of(val), unit="items") as advance:
        return evaluate(
            run.model.model,
            val,
            run_device=run.run_device,
            batch_size=run.batch_size,
            document_start=run.data.document_start,
            document_end=run.data.document_end,
            name="the validation split",
            advance=advance,
        )


def _bits_per_byte(run: LoadedRun, result: Evaluation) -> float | None:
    """All bits divided by the bytes of the tokens that were measured."""
    codec = run.model.codec
    if not isinstance(codec, TextCodec):
        return None
    sizes = torch.tensor([len(piece) for piece in codec.token_bytes])
    counted = (y[y != IGNORE] for _, y in walk(run.data.val, run.batch_size))
    size = sum(int(sizes[ids].sum()) for ids in counted)
    return result.bits_per_token * result.tokens / size if size else None
