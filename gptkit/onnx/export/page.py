"""A page that runs an exported model in a browser."""

import json
from pathlib import Path

from gptkit.errors import UsageError
from gptkit.files import write_atomically, writing

ONNXRUNTIME_WEB = "1.30.0"
"""The npm package that the page runs the model with."""
MARK = b'<meta name="generator" content="gptkit">'


def check(web: Path) -> None:
    """Raise a UsageError where something else is in the page's way."""
    index = web / "index.html"
    if web.exists() and not web.is_dir():
        raise UsageError(f"{web}: is no folder", hint="choose another --web")
    if index.exists() and MARK not in index.read_bytes():
        raise UsageError(
            f"{index}: is there already, and is not gptkit's", hint="choose another --web"
        )


def write(web: Path) -> None:
    """Write index.html beside model.onnx, and a package.json for `npm install`."""
    template = Path(__file__).with_name("templates") / "index.html"
    _write(web / "index.html", template.read_text(encoding="utf-8"))
    if not (web / "package.json").exists():  # the folder may be a project of its own
        package = {"private": True, "dependencies": {"onnxruntime-web": ONNXRUNTIME_WEB}}
        _write(web / "package.json", json.dumps(package, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    with writing(path, hint="choose another --web"):
        write_atomically(path, text.encode())
