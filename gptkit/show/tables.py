"""Rows as a table for people or as JSON for machines."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Print rows, each with a value for every column."""
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(*[name.replace("_", " ") for name in columns], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*[escape(_cell(row[name])) for name in columns])
    Console().print(table)


def print_columns(
    headings: Sequence[str], rows: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> None:
    """Print rows as columns side by side, a line for every key."""
    table = Table("", *map(escape, headings), box=None, pad_edge=False)
    for key in keys:
        table.add_row(key, *[escape(_cell(row[key])) for row in rows])
    Console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
