"""The proof of an export."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from rich.console import Console
from rich.table import Table

from gptkit.onnx.runtime.metadata import Check


def working() -> AbstractContextManager[object]:
    """Show on a terminal that the export is running."""
    return Console(stderr=True).status("writing the graphs and comparing them with the checkpoint")


def proof(checks: Sequence[Check]) -> None:
    """Print what was compared, how far apart it was, and how far it may be; to stderr."""
    table = Table("compared with the checkpoint", "measured", "limit", "unit", box=None)
    for check in checks:
        found = "not a number" if check.measured is None else f"{check.measured:.3g}"
        table.add_row(check.name, found, f"{check.limit:g}", check.unit)
    Console(stderr=True).print(table)
