"""The README.md of an exported folder: a model card as the Hub reads it."""

import json
import re
from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any

import torch

from gptkit.codec import TextCodec
from gptkit.plugin import TrainedModel, harmless

LOCAL = re.compile(r"[~/\\]|\.\.?[/\\]|[A-Za-z]:[/\\]")
"""How a path of this computer begins."""
PROGRAM = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
inputs = tokenizer({prompt}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```"""
IDS_PROGRAM = """\
```python
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}")
print(model.generate(torch.tensor([{start}]), max_new_tokens=50)[0].tolist())
```"""


def model_card(
    model: TrainedModel, config: Mapping[str, Any], name: str, *, difference: float
) -> str:
    """The text.

    Args:
        model: what was exported.
        config: the contents of its config.json.
        name: of the folder.
        difference: of the logits, in the proof.
    """
    is_text = isinstance(model.codec, TextCodec)
    program = PROGRAM if is_text else IDS_PROGRAM
    start = list(model.codec.starts[0])
    count = sum(torch.Size(weight.shape).numel() for weight in model.weights.values())
    facts = {
        "Architecture": config["architectures"][0],
        "Parameters": f"{count:,}",
        "Context": f"{model.config['block_size']:,} tokens",
        "Vocabulary": f"{model.config['vocab_size']:,} tokens",
        "Data set": model.dataset,
        "Steps": f"{model.step:,}",
        "Validation loss": _loss(model.val_loss),
        "Began with": _public(_source(model)),
        "Revision": model.about.get("revision"),
    }
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items() if value)
    parts = [
        _front_matter(model, is_text=is_text),
        f"# {_cell(name)}",
        "Trained with gptkit.",
        f"| | |\n|---|---|\n{table}",
        program.format(name=_cell(name), prompt=json.dumps("Once"), start=start),
        "What these files compute was compared with the trained model: logits differ by at most "
        f"{difference:.1e} of the largest one, greedy tokens are equal.",
    ]
    if model.recipe:
        recipe = json.dumps(_public(model.recipe), indent=2, ensure_ascii=False)
        parts.append(f"## Recipe\n\n```json\n{_fenced(recipe)}\n```")
    return "\n\n".join(parts) + "\n"


def _front_matter(model: TrainedModel, *, is_text: bool) -> str:
    """What the Hub reads; values are JSON, which is YAML."""
    values: dict[str, Any] = {
        "license": model.about.get("license"),
        "library_name": "transformers",
        "pipeline_tag": "text-generation" if is_text else None,
        "tags": ["gptkit"],
        "base_model": model.about.get("source") if model.about.get("revision") else None,
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items() if value]
    return "\n".join(["---", *lines, "---"])


def _source(model: TrainedModel) -> str | None:
    """What the model began with: a name on the Hub, or the last part of a path."""
    source = model.about.get("source")
    if source is None or model.about.get("revision"):
        return source
    return PureWindowsPath(source).name


def _public(value: Any) -> Any:
    """The value, with paths of this computer cut to their last part."""
    if isinstance(value, Mapping):
        return {key: _public(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_public(each) for each in value]
    if isinstance(value, str) and LOCAL.match(value):
        return PureWindowsPath(value).name
    return value


def _loss(loss: float | None) -> str | None:
    return None if loss is None else f"{loss:.4f} nats per token"


def _cell(value: object) -> str:
    """A value in a table or a heading."""
    return harmless(str(value)).replace("|", "\\|")


def _fenced(text: str) -> str:
    """A text that does not end a block of code."""
    return text.replace("```", "'''")
