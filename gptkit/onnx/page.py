"""A page that runs an exported model in a browser."""

import json
from pathlib import Path

from gptkit import folder

ONNXRUNTIME_WEB = "1.30.0"
"""The npm package that the page runs the model with."""


def write(web: Path) -> None:
    """Write index.html beside model.onnx, and a package.json for `npm install`."""
    template = Path(__file__).with_name("templates") / "index.html"
    folder.write_text(web / "index.html", template.read_text(encoding="utf-8"))
    if not (web / "package.json").exists():  # the folder may be a project of its own
        package = {"private": True, "dependencies": {"onnxruntime-web": ONNXRUNTIME_WEB}}
        folder.write_text(web / "package.json", json.dumps(package, indent=2) + "\n")
