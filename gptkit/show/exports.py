"""What `gptkit export` prints: that it is working, and the proof."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from gptkit.data.progress import silent
from gptkit.onnx.export.format import Onnx
from gptkit.plugin import Format
from gptkit.terminal import say

PAGE = "in that folder: npm install && python -m http.server, then open localhost:8000"


@contextmanager
def working() -> Iterator[None]:
    """Show on a terminal that the export is running; its parts then show nothing themselves."""
    console = Console(stderr=True)
    shown = console.status("writing the model and comparing it with the checkpoint")
    with silent(console.is_terminal), shown:
        yield


def print_proof(written: Format) -> None:
    """Print what was compared, how large the error was and how large it may be; to stderr."""
    if not isinstance(written, Onnx):
        return
    table = Table(
        "compared with the checkpoint", "measured", "limit", "unit", box=None, pad_edge=False
    )
    for each in written.comparisons:
        measured = "not a number" if each.measured is None else f"{each.measured:.3g}"
        table.add_row(each.name, measured, f"{each.limit:g}", each.unit)
    Console(stderr=True).print(table)
    if written.web:
        say(PAGE)
