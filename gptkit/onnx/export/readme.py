"""The README.md of a bundle: what it holds and how to use it, with the model's own values."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template

from gptkit.onnx.runtime.metadata import Metadata

DEFAULT_TOKENS = 200
"""What the programs draw if a sample has no fixed length."""


MOST_LISTED = 4096
"""Tokens of text that the program in JavaScript lists; for more it prints ids."""


@dataclass(frozen=True)
class Programs:
    """Where the programs of the README differ between kinds of models."""

    python_start: str
    python_result: str
    js_result: str
    python_imports: str = "import json"


TEXT = Programs(
    python_start="start = $start",
    python_result="""\
print("".join(legend["text"][token] for token in [*start, *drawn]))""",
    js_result="""\
const characters = $legend;
console.log([...start, ...drawn].map((token) => characters[token]).join(""));""",
)
BYTES = Programs(
    python_start="start = $start",
    python_result="""\
pieces = [base64.b64decode(piece) for piece in legend["bytes"]]  # UTF-8 when they are joined
print(b"".join(pieces[token] for token in [*start, *drawn]).decode(errors="replace"))""",
    js_result="""\
const pieces = $legend.map((piece) => Buffer.from(piece, "base64"));
console.log(Buffer.concat([...start, ...drawn].map((token) => pieces[token])).toString());""",
    python_imports="import base64\nimport json",
)
IMAGES = Programs(
    python_start="start = $start",
    python_result="""\
levels = legend.get("colors") or [[level] for level in range(256)]  # red, green and blue, or one
levels.append([128] * len(levels[0]))  # a start token amid the pixels is grey
pixels = np.array(levels, np.uint8)[np.minimum(drawn, len(levels) - 1)]
with open("drawn.ppm", "wb") as file:
    file.write(b"P6 %d %d 255\\n" % (legend["width"], legend["height"]) + pixels.tobytes())""",
    js_result="""\
console.log(drawn.join(" "));""",
)
OTHER = Programs(
    python_start="start = $start",
    python_result="print(*start, *drawn)",
    js_result=IMAGES.js_result,
)


def _programs(metadata: Metadata) -> Programs:
    """The programs for a model's kind of data."""
    legend = metadata.tokens.legend or {}
    if "width" in legend:
        return IMAGES
    if "bytes" in legend:
        found = BYTES
    elif "text" in legend:
        found = replace(TEXT, python_start=_python_start(legend["text"], metadata.tokens.starts[0]))
    else:
        return OTHER
    if metadata.vocab_size > MOST_LISTED:
        return replace(found, js_result=OTHER.js_result)
    return found


def _python_start(pieces: list[str], start: list[int]) -> str:
    """Lines that read a prompt, if every token is a character, or nothing, as a start token is."""
    if max(map(len, pieces)) > 1:
        return TEXT.python_start
    ids = '[legend["text"].index(character) for character in prompt]'
    is_text = any(pieces[token] for token in start)  # otherwise it is before a prompt, too
    return 'prompt = ""\nstart = ' + (f"{ids} or $start" if is_text else f"$start + {ids}")


def readme(name: str, metadata: Metadata) -> str:
    """The text of the README for a bundle of that name."""
    tokens, legend = metadata.tokens, metadata.tokens.legend or {}
    programs, listed = _programs(metadata), legend.get("text") or legend.get("bytes")
    out = "" if listed else f" --out drawn{tokens.suffix}"
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
        "stops": [] if "width" in legend else tokens.stop_tokens,  # a picture is drawn whole
        "temperature": tokens.temperature,
        "count": tokens.length - len(tokens.starts[0]) if tokens.length else DEFAULT_TOKENS,
        "classes": f" (class 1 of {len(tokens.starts)})" if len(tokens.starts) > 1 else "",
        "legend": json.dumps(listed, ensure_ascii=False),
        "options": f"--seed 1{out}",
    }
    parts = {part: Template(text).substitute(values) for part, text in vars(programs).items()}
    template = Path(__file__).with_name("templates") / "README.md"
    return Template(template.read_text(encoding="utf-8")).substitute(values | parts)
