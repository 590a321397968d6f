"""Rows as a table for people or as JSON for machines."""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

from gptkit.terminal import harmless

UNLIMITED = 1 << 20
"""The width of what is no terminal."""


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    as_json: bool,
    right: Collection[str] = (),
) -> None:
    """Print rows, each with a value for every column.

    Numbers are right-aligned, as are the texts of the columns `right`.

    A terminal that is too narrow breaks texts into several lines; nothing is left out.
    """
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(box=None, pad_edge=False)
    for name in columns:
        is_text = name not in right and any(isinstance(row[name], str) for row in rows)
        justify: JustifyMethod = "left" if is_text else "right"
        title = name.replace("_", " ")
        table.add_column(title, overflow="fold", no_wrap=not is_text, justify=justify)
    for row in rows:
        table.add_row(*[_cell(row[name], name) for name in columns])
    _console().print(table)


def print_columns(
    headings: Sequence[str], rows: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> None:
    """Print rows as columns side by side, a line for every key.

    On a terminal that is too narrow, the headings become numbers, with a legend before the table,
    and the columns that do not fit follow in further tables.
    """
    console = _console()
    cells = [[row[key] for key in keys] for row in rows]
    columns = [[heading, *column] for heading, column in zip(headings, cells, strict=True)]
    whole = _side_by_side(keys, columns)
    if _fits(whole, console):
        console.print(whole)
        return
    for number, column in enumerate(columns, 1):
        console.print(f"{number}  {_cell(column[0])}", highlight=False, soft_wrap=True)
        column[0] = number
    while columns:
        count = 1
        while count < len(columns) and _fits(_side_by_side(keys, columns[: count + 1]), console):
            count += 1
        console.print()
        console.print(_side_by_side(keys, columns[:count]))
        columns = columns[count:]


def _side_by_side(keys: Sequence[str], columns: Sequence[Sequence[Any]]) -> Table:
    """Columns, each of a heading and a value for every key."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", *[column[0] for column in columns]):
        table.add_column(_cell(heading), overflow="fold")
    for row, key in enumerate(keys, 1):
        table.add_row(_cell(key), *[_cell(column[row], key) for column in columns])
    return table


def _fits(table: Table, console: Console) -> bool:
    natural = console.options.update(max_width=UNLIMITED)
    return console.measure(table, options=natural).maximum <= console.width


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=UNLIMITED)


def _cell(value: Any, name: str = "") -> str:
    """A value as text; a loss has as many digits as in the log of the training."""
    if value is None:
        return "-"
    number = ".4f" if name.endswith("loss") else ".5g"
    text = f"{value:{number}}" if isinstance(value, float) else str(value)
    text = text.lower() if isinstance(value, bool) else text  # as in a recipe
    return escape(harmless(text, keep=""))
