"""`gptkit.load`: a trained model, from a checkpoint or, without torch, from an exported file."""

import os
from pathlib import Path

from gptkit.arguments import checked
from gptkit.errors import UsageError
from gptkit.sampling.model import Model

ENGINES = ("auto", "torch", "onnx")
"""What draws from a run's model."""


@checked
def load(
    path: str | os.PathLike[str] | None = None,
    *,
    checkpoint: str | int = "last",
    weights: str | None = None,
    device: str = "auto",
    engine: str = "auto",
) -> Model:
    """Load a trained model.

    Args:
        path: a run folder, an exported .onnx file or a bundle; None takes the newest run.
        checkpoint: "last", "best" or a step's number of a run.
        weights: the name of a further set of weights of a run, such as "ema".
        device: "auto", "cpu", "cuda", "cuda:N" or, for a run, "mps".
        engine: what draws from a run's model: "torch", "onnx" (onnxruntime, on a CPU), or "auto",
            which takes the faster one.

    Raises:
        GptkitError: the path is none of these, or the model in it cannot be used.
    """
    model, _ = open_model(
        path, checkpoint=checkpoint, weights=weights, device=device, engine=engine
    )
    return model


def open_model(
    path: str | os.PathLike[str] | None,
    *,
    checkpoint: str | int,
    weights: str | None,
    device: str,
    engine: str,
) -> tuple[Model, str | None]:
    """A model as `load` returns it, and what chose its engine or device; None if nothing did."""
    if engine not in ENGINES:
        raise UsageError(f'no engine named "{engine}"', hint=", ".join(ENGINES))
    folder = None if path is None else Path(path)
    if folder and _is_exported(folder):
        from gptkit.onnx.runtime.model import load_exported

        if checkpoint != "last":
            raise UsageError(f"{folder}: an exported model has no checkpoints to choose from")
        if weights is not None:
            raise UsageError(
                f"{folder}: an exported model has one set of weights",
                hint=f"gptkit export RUN --weights {weights}",
            )
        if engine == "torch":
            fault = "an exported model runs in onnxruntime"
            raise UsageError(f"{folder}: {fault}", hint="--engine onnx")
        model = load_exported(folder, device=device)
        return model, model.provider if device == "auto" else None
    if folder and (folder / "model.onnx").is_file() and not (folder / "recipe.toml").exists():
        raise UsageError(
            f"{folder}: not a run folder or a bundle", hint=f"gptkit sample {folder / 'model.onnx'}"
        )
    from gptkit.engine import load_model

    drawn_by, reason = load_model(
        folder, checkpoint=checkpoint, weights=weights, device=device, engine=engine
    )
    return drawn_by, reason if engine == "auto" else None


def _is_exported(path: Path) -> bool:
    """Whether a path is that of an exported model: any file, or a folder with a bundle in it."""
    bundle = (path / "generate.onnx").exists()
    return bundle or path.suffix.lower() == ".onnx" or (path.exists() and not path.is_dir())
