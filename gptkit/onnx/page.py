"""A page that runs an exported model in a browser."""

from pathlib import Path

from gptkit import folder
from gptkit.onnx.metadata import Metadata


def write(web: Path, metadata: Metadata) -> None:
    """Write index.html beside model.onnx."""
    template = Path(__file__).with_name("templates") / "index.html"
    folder.write_text(web / "index.html", template.read_text(encoding="utf-8"))
