"""What commands print on stdout: tables for people, JSON for machines, samples as they come."""

import json
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gptkit import checkpoint
from gptkit import recipe as recipe_file
from gptkit.errors import CheckpointError, GptkitError, PluginError, UsageError
from gptkit.folder import RunFolder
from gptkit.registry import Entry
from gptkit.run import Drawing
from gptkit.trainer import Evaluation


def stream_samples(drawing: Drawing, file: IO[bytes], *, samples: int) -> None:
    """Write one sample as it is drawn, or several when they are complete.

    Raises:
        UsageError: the samples are pictures, which no terminal can take as bytes.
    """
    codec = drawing.codec
    if codec.suffix != ".txt":
        raise UsageError(f"samples are {codec.suffix} files", hint=f"--out sample{codec.suffix}")
    if samples > 1:
        file.write(codec.sheet(drawing.rows()) + b"\n")
        return
    file.write(codec.decode(drawing.prompt))
    for (token,) in drawing.stream:
        file.write(codec.decode([token]))
        file.flush()
    file.write(b"\n")


def write_samples(drawing: Drawing, path: Path) -> None:
    """Write samples into one file, complete or not at all.

    Raises:
        GptkitError: the file cannot be written.
    """
    rows = drawing.rows()
    contents = drawing.codec.sheet(rows) if len(rows) > 1 else drawing.codec.decode(rows[0])
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(contents)
        temporary.replace(path)
    except OSError as error:
        raise GptkitError(f"{path}: cannot be written: {error.strerror}") from error


def evaluation(result: Evaluation, state: checkpoint.State, *, as_json: bool) -> None:
    """Print what `gptkit eval` measured."""
    values = {
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_token": result.bits_per_token,
        "tokens": result.tokens,
        "step": state.step,
    }
    if as_json:
        print(json.dumps(values))
        return
    print(f"loss            {result.loss:.4f} nats per token")
    print(f"perplexity      {result.perplexity:.3f}")
    print(f"bits per token  {result.bits_per_token:.4f}")
    print(f"tokens          {result.tokens:,} (the whole validation split)")
    print(f"step            {state.step}")


def entries(found: Iterable[Entry], *, as_json: bool) -> None:
    """Print installed plugins."""
    rows = [
        {"kind": e.kind, "name": e.name, "distribution": e.distribution, "version": e.version}
        for e in found
    ]
    _print_rows(rows, ("kind", "name", "distribution", "version"), as_json=as_json)


def plugin(entry: Entry, model: type[BaseModel]) -> None:
    """Print a plugin's description and options."""
    print(f"{entry.kind} {entry}\n\n{(model.__doc__ or '').strip()}\n")
    rows = [
        {
            "option": name,
            "type": _type_name(field.annotation),
            "default": "required"
            if field.is_required()
            else json.dumps(field.default, default=str),
            "meaning": field.description or "",
        }
        for name, field in model.model_fields.items()
    ]
    _print_rows(rows, ("option", "type", "default", "meaning"), as_json=False)


def checks(results: Iterable[tuple[Entry, PluginError | None]]) -> None:
    """Print which plugins work; of a broken one where it broke."""
    for entry, error in results:
        print(f"{entry.kind} {entry}: {error or 'ok'}")
        if error and error.__cause__:
            print("".join(traceback.format_exception(error.__cause__)))


def runs(found: Sequence[RunFolder], *, as_json: bool) -> None:
    """Print one line per run."""
    columns = ("run", "step", "val_loss", "best_val_loss", "dataset")
    _print_rows([_run_row(run) for run in found], columns, as_json=as_json)


def run(found: RunFolder, *, as_json: bool) -> None:
    """Print a run's environment, checkpoints and recipe."""
    environment = json.loads(found.environment.read_text()) if found.environment.exists() else {}
    steps = [_checkpoint_row(path) for path in checkpoint.step_folders(found.checkpoints)]
    recipe = found.recipe.read_text()
    if as_json:
        values = _run_row(found) | {"environment": environment, "checkpoints": steps}
        print(json.dumps(values | {"recipe": recipe}))
        return
    print(f"{found.path}\n")
    for key in ("device", "dtype", "git_commit", "data_sha256"):
        print(f"{key:12} {environment.get(key)}")
    print()
    _print_rows(steps, ("checkpoint", "val_loss"), as_json=False)
    print(f"\n{recipe}", end="")


def comparison(found: Sequence[RunFolder], *, as_json: bool) -> None:
    """Print runs side by side: losses, and the recipe fields in which they differ."""
    recipes = [recipe_file.read(run.recipe).flat() for run in found]
    keys = dict.fromkeys(key for fields in recipes for key in fields)
    differing = [k for k in keys if any(r.get(k) != recipes[0].get(k) for r in recipes[1:])]
    rows = [
        _run_row(run) | {key: fields.get(key) for key in differing}
        for run, fields in zip(found, recipes, strict=True)
    ]
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("", *[str(run.path) for run in found], box=None, pad_edge=False)
    for key in ("step", "val_loss", "best_val_loss", *differing):
        table.add_row(key, *[escape(_cell(row[key])) for row in rows])
    Console().print(table)


def _run_row(found: RunFolder) -> dict[str, Any]:
    steps = [_checkpoint_row(path) for path in checkpoint.step_folders(found.checkpoints)]
    best = checkpoint.best(found.checkpoints)
    last = steps[-1] if steps else {}
    return {
        "run": str(found.path),
        "step": last.get("step"),
        "val_loss": last.get("val_loss"),
        "best_val_loss": checkpoint.load_state(best).val_loss if best else None,
        "dataset": last.get("dataset"),
    }


def _checkpoint_row(path: Path) -> dict[str, Any]:
    try:
        state = checkpoint.load_state(path)
    except CheckpointError:
        return {"checkpoint": path.name, "step": None, "val_loss": "damaged", "dataset": None}
    return {
        "checkpoint": path.name,
        "step": state.step,
        "val_loss": state.val_loss,
        "dataset": state.dataset,
    }


def _type_name(annotation: Any) -> str:
    return (
        annotation.__name__
        if isinstance(annotation, type)
        else str(annotation).replace("typing.", "")
    )


def _print_rows(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool
) -> None:
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(*[name.replace("_", " ") for name in columns], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*[escape(_cell(row[name])) for name in columns])
    Console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
