"""What `gptkit tokenize` prints: tables and a passage for people, or JSON for machines."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptkit.plugin import harmless
from gptkit_text.concerns import concerns
from gptkit_text.survey import Amount, Group, Survey, Token
from gptkit_text.visible import visible

ROWS = 8
"""Lines of a list, and of the passage."""
WIDEST = 24
"""Characters of a token in a list; longer ones are cut."""
UNLIMITED = 1 << 20
"""The width of what is no terminal."""
TITLE = "bold"
COLOURS = ("black on color(153)", "black on color(223)")
FEW_COLOURS = ("black on cyan", "black on yellow")
END_STYLE = "color(231) on color(61)"
MARK = "|"


def print_survey(found: Survey) -> None:
    """Print a survey for people: one screen."""
    width = None if sys.stdout.isatty() else UNLIMITED
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    tables = [_splits(found), *[_sources(found)] * (len(found.sources) > 1), _lists(found)]
    if found.shards:
        console.print(f"The first of {found.shards:,} shards: the others are not read yet.\n")
    console.print(_vocabulary(found))
    for part in (*tables, _passage(found, console)):
        console.print()
        console.print(part)


def print_json(found: Survey) -> None:
    """Print a survey as one JSON object."""
    sys.stdout.write(json.dumps(as_json(found)) + "\n")


def print_concerns(found: Survey) -> None:
    """Print on stderr what may spoil a training."""
    for line in concerns(found):
        sys.stderr.write(f"warning: {harmless(line, keep='')}\n")


def as_json(found: Survey) -> dict[str, Any]:
    """All facts as JSON values."""
    amounts = {"train": found.train, "val": found.val}
    groups = ("longest", "rarest", "never", "never_single", "untaught")
    return {
        "shards": found.shards,
        "vocab_size": found.codec.vocab_size,
        "end": found.codec.end,
        "documents": found.dataset.documents,
        "block_size": found.dataset.block_size,
        "splits": {
            name: _amount_json(amount) | {"windows": found.windows(amount)}
            for name, amount in amounts.items()
        },
        "sources": [
            asdict(source) | {name: _amount_json(getattr(source, name)) for name in amounts}
            for source in found.sources
        ],
        "tokens": {name: _group_json(found, getattr(found, name)) for name in groups},
        "median_count": found.median,
        "shared_documents": found.shared,
        "passage": [{"id": token, "text": found.shown(token)} for token in found.passage],
        "warnings": list(concerns(found)),
    }


def _amount_json(amount: Amount) -> dict[str, Any]:
    return asdict(amount) | {"bytes_per_token": _ratio(amount)}


def _group_json(found: Survey, group: Group) -> dict[str, Any]:
    """A group; the bytes of its tokens in hexadecimal digits."""
    return {
        "size": group.size,
        "first": [
            {"id": t.id, "text": visible(t.piece), "bytes": t.piece.hex(), "count": t.count}
            for t in group.first
        ],
    }


def _vocabulary(found: Survey) -> Text:
    """What tokens there are, and which of them a training does not see."""
    special = found.codec.vocab_size - found.single.size - found.longer.size
    end = found.codec.end
    named = "" if end is None else f", the end token {found.shown(end)}"
    kinds = {
        "single bytes": found.single.size,
        "longer": found.longer.size,
        "special": special - (end is not None),
    }
    never = {"single bytes": found.never_single.size, "longer": found.never.size}
    return Text.assemble(
        (f"{found.codec.vocab_size:,} tokens", TITLE),
        f": {_sum(kinds)}{named}\n",
        ("never in train", TITLE),
        f": {_sum(never)}",
    )


def _sum(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{size:,} {kind}" for kind, size in kinds.items() if size) or "none"


def _splits(found: Survey) -> Table:
    windows = f"windows of {found.dataset.block_size}"
    table = _table("", "documents", "bytes", "tokens", "bytes/token", windows)
    for name, amount in (("train", found.train), ("val", found.val)):
        table.add_row(name, *_cells(amount), f"{found.windows(amount):,}")
    return table


def _sources(found: Survey) -> Table:
    table = _table("source", "documents", "bytes", "tokens", "bytes/token", "drawn", "epochs")
    for source in found.sources[:ROWS]:
        share, epochs = f"{source.share:.1%}", f"{source.epochs:.3g}"
        table.add_row(source.name, *_cells(source.train), share, epochs)
    if len(found.sources) > ROWS:
        table.add_row(f"{len(found.sources) - ROWS} more")
    return table


def _lists(found: Survey) -> Table:
    """The longest and the rarest tokens, with how often each comes in training."""
    groups = {"longest": found.longest.first[:ROWS], "rarest": found.rarest.first[:ROWS]}
    groups = {name: group for name, group in groups.items() if group}
    table = Table(box=None, pad_edge=False, header_style=TITLE)
    for name in groups:
        table.add_column(name, overflow="fold")
        table.add_column("in train", justify="right")
    for pair in zip_longest(*groups.values()):
        table.add_row(*[cell for token in pair for cell in _token_cells(token)])
    return table


def _passage(found: Survey, console: Console) -> Text:
    """The beginning of training with its token borders: in colours, or as marks."""
    coloured = console.color_system is not None and not console.no_color
    few = console.color_system in ("standard", "windows")
    colours = FEW_COLOURS if few else COLOURS
    text = Text()
    for i, token in enumerate(found.passage):
        is_end = token == found.codec.end
        style = (END_STYLE if is_end else colours[i % 2]) if coloured else ""
        for piece in _lines(found.codec.token_bytes[token] or found.special(token)):
            text.append(piece, style)
        if not coloured:
            text.append(MARK)
    lines = text.wrap(console, console.width)[:ROWS]
    return Text("\n").join(lines)


def _lines(piece: bytes) -> Iterator[str]:
    """A token in pieces that end with its line breaks, which are seen, too."""
    for line in re.findall(rb"[^\n]*\n+|[^\n]+", piece):
        yield visible(line)
        if line.endswith(b"\n"):
            yield "\n"


def _table(*titles: str) -> Table:
    """A table of numbers, with names in the first column."""
    table = Table(box=None, pad_edge=False, header_style=TITLE)
    for i, title in enumerate(titles):
        table.add_column(title, justify="right" if i else "left", overflow="fold")
    return table


def _cells(amount: Amount) -> list[str]:
    documents = "-" if amount.documents is None else f"{amount.documents:,}"
    ratio = _ratio(amount)
    each = "-" if ratio is None else f"{ratio:.2f}"
    return [documents, f"{amount.bytes:,}", f"{amount.tokens:,}", each]


def _ratio(amount: Amount) -> float | None:
    """Bytes per token; None without tokens."""
    return amount.bytes / amount.tokens if amount.tokens else None


def _token_cells(token: Token | None) -> list[str]:
    """A token and its count."""
    if token is None:
        return ["", ""]
    shown = f'"{visible(token.piece)}"'
    return [shown if len(shown) <= WIDEST else f"{shown[: WIDEST - 1]}…", f"{token.count:,}"]
