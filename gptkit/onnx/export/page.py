"""A page that runs an exported model in a browser."""

import json
from pathlib import Path

from gptkit.errors import UsageError
from gptkit.files import write_atomically, writing

ONNXRUNTIME_WEB = "1.30.0"
"""Version of the npm package that runs the model in the page."""
MARK = b'<meta name="generator" content="gptkit">'
"""Tells a page of gptkit's from others."""


def check_page_folder(web: Path) -> None:
    """Raise a UsageError if the page would replace something that gptkit did not write."""
    index = web / "index.html"
    if web.exists() and not web.is_dir():
        raise UsageError(f"{web}: not a folder", hint="choose another --web")
    if index.exists() and MARK not in index.read_bytes():
        raise UsageError(
            f"{index}: already exists, and gptkit did not write it", hint="choose another --web"
        )


def write_page(web: Path) -> None:
    """Write index.html beside model.onnx, and a package.json for `npm install`."""
    template = Path(__file__).with_name("templates") / "index.html"
    _write(web / "index.html", template.read_text(encoding="utf-8"))
    if not (web / "package.json").exists():  # the folder may be a project of the user's
        package = {"private": True, "dependencies": {"onnxruntime-web": ONNXRUNTIME_WEB}}
        _write(web / "package.json", json.dumps(package, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    with writing(path, hint="choose another --web"):
        write_atomically(path, text.encode())
