"""A page that runs an exported model in a browser."""

import json
from pathlib import Path

from gptkit.errors import UsageError
from gptkit.files import CHUNK, read_file, read_json, write_atomically, writing

ONNXRUNTIME_WEB = "1.30.0"
"""Version of the npm package that runs the model in the page."""
PACKAGE_FILE = "package.json"
"""Tells npm what the page needs."""
DEPENDENCIES = ("dependencies", "devDependencies")
"""Fields of a package.json."""
MARK = b'<meta name="generator" content="gptkit">'
"""Tells a page of gptkit's from others."""


def check_page_folder(web: Path) -> None:
    """Raise a UsageError if the page would replace something that gptkit did not write."""
    index = web / "index.html"
    if web.exists() and not web.is_dir():
        raise UsageError(f"{web}: not a folder", hint="choose another --web")
    if (web / PACKAGE_FILE).exists() and not _needs_library(web / PACKAGE_FILE):
        raise UsageError(
            f"{web / PACKAGE_FILE}: already exists, and its dependencies lack onnxruntime-web",
            hint=f"npm install onnxruntime-web@{ONNXRUNTIME_WEB} in that folder, or choose another "
            "--web",
        )
    if index.exists() and not _is_own(index):
        raise UsageError(
            f"{index}: already exists, and gptkit did not write it", hint="choose another --web"
        )


def write_page(web: Path) -> None:
    """Write index.html beside model.onnx, and a package.json for `npm install`."""
    template = Path(__file__).with_name("templates") / "index.html"
    _write(web / "index.html", template.read_text(encoding="utf-8"))
    if not (web / PACKAGE_FILE).exists():  # the folder may be a project of the user's
        package = {"private": True, "dependencies": {"onnxruntime-web": ONNXRUNTIME_WEB}}
        _write(web / PACKAGE_FILE, json.dumps(package, indent=2) + "\n")


def _is_own(index: Path) -> bool:
    """Whether gptkit wrote a page."""
    try:
        return MARK in read_file(index, limit=CHUNK)
    except OSError:
        return False


def _needs_library(package: Path) -> bool:
    """Whether the dependencies in a package.json name onnxruntime-web."""
    try:
        found = read_json(package)
        return any("onnxruntime-web" in found.get(kind, {}) for kind in DEPENDENCIES)
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _write(path: Path, text: str) -> None:
    with writing(path, hint="choose another --web"):
        write_atomically(path, text.encode())
