"""What an evaluation measured."""

import io
import json
from pathlib import Path

from gptkit.analysis.measure import Probe
from gptkit.runs.loaded import LoadedModel
from gptkit.runs.run_folder import RunFolder, write_bytes, write_json
from gptkit.show.tables import print_rows
from gptkit.training.trainer import Evaluation


def evaluation(
    result: Evaluation, trained: LoadedModel, *, accuracy: float | None, as_json: bool
) -> None:
    """Print what `gptkit eval` measured."""
    values = {
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_token": result.bits_per_token,
        "tokens": result.tokens,
        "step": trained.state.step,
    }
    if trained.codec.lossless:
        values["bits_per_dim"] = result.bits_per_token
    if accuracy is not None:
        values["accuracy"] = accuracy
    if as_json:
        print(json.dumps(values))
        return
    print(f"loss            {result.loss:.4f} nats per token")
    print(f"perplexity      {result.perplexity:.3f}")
    print(f"bits per token  {result.bits_per_token:.4f}")
    if trained.codec.lossless:
        print(f"bits per dim    {result.bits_per_token:.4f}")
    elif trained.codec.lossless is False:
        print("bits per dim    lossy palette: not comparable with bits/dim")
    print(f"tokens          {result.tokens:,} (the whole validation split)")
    if accuracy is not None:
        print(f"accuracy        {accuracy:.4f} by the highest p(x | class)")
    print(f"step            {trained.state.step}")


def probe(result: Probe, run: RunFolder, *, as_json: bool) -> None:
    """Print accuracy by layer beside the baselines; keep it as probe.json and probe.png."""
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        _print_probe(result)
    write_json(run.path / "probe.json", result.to_json())
    plotted = _plot_probe(result, run.path / "probe.png")
    if not as_json:
        print(plotted)


def _print_probe(result: Probe) -> None:
    rows: list[dict[str, object]] = [
        {"features": f"after block {i}", "accuracy": a} for i, a in enumerate(result.layers)
    ]
    rows[0]["features"] = "embedding"
    rows.append({"features": "raw data", "accuracy": result.raw})
    rows.append({"features": "chance", "accuracy": result.chance})
    print_rows(rows, ("features", "accuracy"), as_json=False)
    print(f"{result.train_items:,} items to fit, {result.val_items:,} to test, step {result.step}")


def _plot_probe(result: Probe, path: Path) -> str:
    """Draw the curve, where matplotlib is installed; say where it is."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "pip install gptkit[plots] to have the curve drawn"
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(len(result.layers)), result.layers, marker="o", label="features")
    if result.raw is not None:
        axes.axhline(result.raw, linestyle="--", color="gray", label="raw data")
    axes.axhline(result.chance, linestyle=":", color="gray", label="chance")
    axes.set(xlabel="block", ylabel="accuracy", title="Linear probe by layer")
    axes.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120)
    write_bytes(path, drawn.getvalue())
    return str(path)
