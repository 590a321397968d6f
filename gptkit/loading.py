"""`gptkit.load`: a trained model, from a checkpoint or, without torch, from an exported file."""

from pathlib import Path

from gptkit.errors import UsageError
from gptkit.sampling.model import Model


def load(
    path: Path | str | None = None, *, checkpoint: str = "last", device: str = "auto"
) -> Model:
    """Load a trained model.

    Args:
        path: a run folder, an exported .onnx file or a bundle; None takes the newest run.
        checkpoint: "last", "best" or a step's number of a run.
        device: "auto", "cpu", "cuda", "cuda:N" or, for a run, "mps".

    Raises:
        GptkitError: the path is none of these, or the model in it cannot be used.
    """
    path = Path(path) if path is not None else None
    if path and (path.suffix == ".onnx" or (path / "generate.onnx").is_file()):
        from gptkit.onnx.runtime.model import load_exported

        if checkpoint != "last":
            raise UsageError(f"{path}: an exported model has no checkpoints to choose from")
        return load_exported(path, device=device)
    if path and (path / "model.onnx").is_file() and not (path / "recipe.toml").exists():
        raise UsageError(
            f"{path}: not a run folder or a bundle", hint=f"gptkit sample {path / 'model.onnx'}"
        )
    from gptkit.runs.loaded import load_checkpoint

    return load_checkpoint(path, checkpoint=checkpoint, device=device)
