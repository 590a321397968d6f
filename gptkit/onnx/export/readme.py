"""The README.md of a bundle: what it holds and how to use it, with the model's own values."""

import json
from dataclasses import dataclass
from pathlib import Path
from string import Template

from gptkit.onnx.runtime.metadata import Metadata

DEFAULT_TOKENS = 200
"""What the programs draw if a sample has no fixed length."""


@dataclass(frozen=True)
class Programs:
    """Where the programs of the README differ between kinds of models."""

    python_start: str
    python_result: str
    js_result: str


TEXT = Programs(
    python_start="""\
prompt = ""
start = [legend["text"].index(character) for character in prompt] or $start""",
    python_result="""\
print("".join(legend["text"][token] for token in [*start, *tokens[0]]))""",
    js_result="""\
const characters = $characters;
console.log([...start, ...tokens.data].map((token) => characters[token]).join(""));""",
)
IMAGES = Programs(
    python_start="start = $start",
    python_result="""\
levels = legend.get("colors") or [[level] for level in range(256)]  # red, green and blue, or one
levels.append([128] * len(levels[0]))  # a start token amid the pixels is grey
pixels = np.array(levels, np.uint8)[np.minimum(tokens[0], len(levels) - 1)]
with open("drawn.ppm", "wb") as file:
    file.write(b"P6 %d %d 255\\n" % (legend["width"], legend["height"]) + pixels.tobytes())""",
    js_result="""\
console.log(tokens.data.join(" "));""",
)
OTHER = Programs(
    python_start="start = $start",
    python_result="print(*start, *tokens[0])",
    js_result=IMAGES.js_result,
)


def readme(name: str, metadata: Metadata) -> str:
    """The text of the README for a bundle of that name."""
    tokens, legend = metadata.tokens, metadata.tokens.legend or {}
    programs = TEXT if "text" in legend else IMAGES if "width" in legend else OTHER
    out = "" if tokens.suffix == ".txt" else f" --out drawn{tokens.suffix}"
    values = {
        "name": name,
        "dataset": metadata.dataset,
        "step": metadata.step,
        "dtype": metadata.dtype,
        "opset": metadata.opset,
        "gptkit": metadata.gptkit,
        "block_size": metadata.block_size,
        "vocab_size": metadata.vocab_size,
        "start": tokens.starts[0],
        "temperature": tokens.temperature,
        "count": tokens.length - len(tokens.starts[0]) if tokens.length else DEFAULT_TOKENS,
        "classes": f" (class 1 of {len(tokens.starts)})" if len(tokens.starts) > 1 else "",
        "characters": json.dumps(legend.get("text"), ensure_ascii=False),
        "options": f"--seed 1{out}",
    }
    parts = {part: Template(text).substitute(values) for part, text in vars(programs).items()}
    template = Path(__file__).with_name("templates") / "README.md"
    return Template(template.read_text(encoding="utf-8")).substitute(values | parts)
