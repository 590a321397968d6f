"""`gptkit eval`: the loss of a run's model and, if wanted, its accuracy as a classifier."""

from dataclasses import dataclass
from pathlib import Path

from gptkit.analysis.classification import classify
from gptkit.runs.loaded import LoadedModel, load_run
from gptkit.training.evaluate import Evaluation, evaluate


@dataclass(frozen=True)
class RunEvaluation:
    """What `gptkit eval` measures on a run's validation split."""

    model: LoadedModel
    result: Evaluation
    accuracy: float | None
    """From `classify`; None if it was not requested."""


def evaluate_run(
    path: Path | None, *, checkpoint: str = "last", device: str = "auto", by_class: bool = False
) -> RunEvaluation:
    """Measure a run's model on the whole validation split.

    Args:
        path: the run folder; None takes the newest one.
        checkpoint: "last", "best" or a step's number.
        device: where to compute.
        by_class: whether to measure the accuracy, too.
    """
    run = load_run(path, checkpoint=checkpoint, device=device)
    accuracy = classify(run) if by_class else None
    result = evaluate(
        run.model.model, run.data.val, run_device=run.run_device, batch_size=run.batch_size
    )
    return RunEvaluation(run.model, result, accuracy)
