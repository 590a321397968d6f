"""Results of `gptkit eval` and `gptkit probe`."""

import json
from pathlib import Path

from gptkit.analysis.evaluation import RunEvaluation
from gptkit.analysis.probes import Probe
from gptkit.codec import ImageCodec
from gptkit.show.tables import print_rows
from gptkit.terminal import print_result


def print_evaluation(found: RunEvaluation, *, as_json: bool) -> None:
    """Print what `gptkit eval` measured."""
    accuracy, step = found.accuracy, found.model.state.step
    codec = found.model.codec
    lossless = codec.lossless if isinstance(codec, ImageCodec) else None
    values: dict[str, float | str] = {
        "loss": found.loss,
        "perplexity": found.perplexity,
        "bits_per_token": found.bits_per_token,
        "tokens": found.tokens,
        "step": step,
    }
    if lossless:
        values["bits_per_dim"] = found.bits_per_token
    if found.bits_per_byte is not None:
        values["bits_per_byte"] = found.bits_per_byte
    if accuracy is not None:
        values["accuracy"] = accuracy
    if found.model.weights:
        values["weights"] = found.model.weights
    if as_json:
        print(json.dumps(values))
        return
    print(f"loss            {found.loss:.4f} nats per token")
    print(f"perplexity      {found.perplexity:.3f}")
    print(f"bits per token  {found.bits_per_token:.4f}")
    if lossless:
        print(f"bits per dim    {found.bits_per_token:.4f}")
    elif lossless is False:
        print("bits per dim    not comparable: the codec drops information")
    if found.bits_per_byte is not None:
        print(f"bits per byte   {found.bits_per_byte:.4f}")
    print(f"tokens          {found.tokens:,} (the whole validation split)")
    if accuracy is not None:
        print(f"accuracy        {_percent(accuracy)} by the highest p(x | class)")
    print(f"step            {step}")
    if found.model.weights:
        print_result(f"weights         {found.model.weights}")


def print_probe(result: Probe, plot: Path | None, *, as_json: bool) -> None:
    """Print accuracy by layer beside the baselines.

    Args:
        result: what `gptkit probe` measured.
        plot: the file with the curve; None if matplotlib is missing.
        as_json: print JSON alone.
    """
    if as_json:
        print(json.dumps(result.to_json()))
        return
    found = {f"after block {i}": accuracy for i, accuracy in enumerate(result.layers)}
    found = {"embedding": found.pop("after block 0"), **found}
    baselines = {"raw data": result.raw, "chance": result.chance}
    rows = [
        {"features": name, "accuracy": "-" if accuracy is None else _percent(accuracy)}
        for name, accuracy in (found | baselines).items()
    ]
    print_rows(rows, ("features", "accuracy"), as_json=False)
    print(f"{result.train_items:,} items to fit, {result.val_items:,} to test, step {result.step}")
    print_result(plot or 'pip install "gptkit[plots]" to draw the curve')


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
