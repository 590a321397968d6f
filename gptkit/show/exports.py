"""What `gptkit export` prints: that it is working, and the proof."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from rich.console import Console
from rich.table import Table

from gptkit.onnx.runtime.metadata import Comparison


def working() -> AbstractContextManager[object]:
    """Show on a terminal that the export is running."""
    return Console(stderr=True).status("writing the graphs and comparing them with the checkpoint")


def proof(comparisons: Sequence[Comparison]) -> None:
    """Print what was compared, how large the error was and how large it may be; to stderr."""
    table = Table("compared with the checkpoint", "measured", "limit", "unit", box=None)
    for each in comparisons:
        measured = "not a number" if each.measured is None else f"{each.measured:.3g}"
        table.add_row(each.name, measured, f"{each.limit:g}", each.unit)
    Console(stderr=True).print(table)
