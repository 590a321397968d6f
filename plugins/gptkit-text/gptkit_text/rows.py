"""The rows of JSONL and JSON files, and the texts of theirs and of CSV files."""

import csv
import itertools
import json
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any, BinaryIO

from gptkit.plugin import DataError, harmless
from gptkit_text.decoding import Decoder

MOST_ROW = 1 << 30
"""Bytes of a row, or of a JSON file that is no JSONL: these are held in memory."""
SHOWN = 10  # keys in an error
SEPARATOR = re.compile(r"[;\t|]")
LONGEST_SHOWN = 100  # characters of a key
ROW_HINT = "each line should have one JSON object"
FILE_HINT = "it should have an object, a list of objects, or one object per line"
KINDS = {bool: "true or false", dict: "an object", list: "a list", type(None): "null"}

Lines = Iterator[tuple[int, str]]
"""Lines with their numbers from 1."""
Values = Iterator[tuple[int, Any]]
"""JSON values with the numbers of their lines, or of their places in a list, from 1."""


def jsonl_texts(stream: BinaryIO, decoder: Decoder, text_key: str) -> Iterator[str]:
    """The text of the JSON value in each line; lines of white space are skipped.

    Raises:
        DataError: a line is no JSON, or has no text.
    """
    return _texts(jsonl_values(stream, decoder), decoder, text_key)


def json_texts(stream: BinaryIO, decoder: Decoder, text_key: str) -> Iterator[str]:
    """The texts of one object, of a list of objects or strings, or of JSONL by another name.

    Raises:
        DataError: the file is none of these, or a row has no text.
    """
    return _texts(json_values(stream, decoder), decoder, text_key)


def jsonl_values(stream: BinaryIO, decoder: Decoder) -> Values:
    """The JSON value in each line; lines of white space are skipped.

    Raises:
        DataError: a line is no JSON.
    """
    return _of_lines(_lines(stream, decoder), decoder)


def json_values(stream: BinaryIO, decoder: Decoder) -> Values:
    """One value, those of a list, or those of JSONL by another name.

    Raises:
        DataError: the file is none of these.
    """
    lines = _lines(stream, decoder)
    number, first = next((line for line in lines if not line[1].isspace()), (0, ""))
    if not first:
        return
    value = None
    with suppress(ValueError, RecursionError):  # the value may go on in the next line
        value = json.loads(first)
    if isinstance(value, dict | str):
        yield from _of_lines(itertools.chain([(number, first)], lines), decoder)
        return
    rest = _joined(lines, decoder, most=MOST_ROW - len(first))
    if value is None or rest:
        value = _parsed(first + rest, decoder)
    yield from enumerate(value if isinstance(value, list) else [value], 1)


def csv_texts(stream: BinaryIO, decoder: Decoder, text_key: str) -> Iterator[str]:
    """The fields of one column; the first line names the columns.

    Raises:
        DataError: it is not CSV, has no such column, or a row has too few fields.
    """
    # Of this process; the module has no other way. It takes four bytes for a character.
    csv.field_size_limit(MOST_ROW // 4)
    reader = csv.reader(decoder.lines(stream, most=MOST_ROW), strict=True)
    index, row, line = None, 0, 1  # the line in which a row begins
    try:
        for fields in reader:
            if fields and index is None:
                index = _column(fields, decoder, text_key)
            elif fields and index is not None:
                row += 1
                if len(fields) <= index:
                    raise DataError(
                        f"{decoder.path}: row {row:,} (line {line:,}): "
                        f'ends before the column "{text_key}"',
                        hint="fields with commas or line feeds need quotation marks",
                    )
                yield fields[index]
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{decoder.path}: line {line:,}: not CSV: {_csv_fault(error)}",
            hint='fields with commas or line feeds need quotation marks; a quotation mark is ""',
        ) from error


def _column(header: list[str], decoder: Decoder, text_key: str) -> int:
    if text_key not in header:
        if len(header) == 1 and (found := SEPARATOR.search(header[0])):
            raise DataError(
                f"{decoder.path}: its columns are separated by {found[0]!r}",
                hint="write it with commas, as CSV",
            )
        raise no_text_key(f"{decoder.path}", text_key, header, kind="column")
    return header.index(text_key)


def _csv_fault(error: csv.Error) -> str:
    """The fault of a row that begins in the line that is told."""
    fault = str(error)
    if "unexpected end of data" in fault:
        return "a quotation mark is not closed"
    if "new-line character" in fault:
        return "a line ends with a carriage return alone"
    if "field limit" in fault:
        return f"a field is longer than {csv.field_size_limit():,} characters"
    return fault


def no_text_key(place: str, text_key: str, names: Collection[str], *, kind: str) -> DataError:
    """The error for a row or a file without the key or the column that should have the text."""
    first = itertools.islice(names, SHOWN)
    shown = ", ".join(harmless(name[:LONGEST_SHOWN], keep="") for name in first)
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    there = f"its {kind}s are {shown}{more}" if names else f"it has no {kind}s"
    return DataError(
        f'{place}: no {kind} "{text_key}"; {there}',
        hint=f"set text_key in [dataset] to the {kind} that has the text; files of a folder that "
        'are no data are left out by endings, such as endings = [".md"]',
    )


def _lines(stream: BinaryIO, decoder: Decoder) -> Lines:
    return enumerate(decoder.lines(stream, most=MOST_ROW), 1)


def _of_lines(lines: Lines, decoder: Decoder) -> Values:
    for number, line in lines:
        if not line.isspace():
            yield number, _parsed(line.rstrip(), decoder, row=number)


def _texts(values: Values, decoder: Decoder, text_key: str) -> Iterator[str]:
    return (_text(value, row, decoder, text_key) for row, value in values)


def _joined(lines: Lines, decoder: Decoder, *, most: int) -> str:
    """The lines that follow the first one; none if all are of white space."""
    parts, size = list[str](), 0
    for _, line in lines:
        parts.append(line)
        size += len(line)
        if size > most:
            raise DataError(
                f"{decoder.path}: is longer than {MOST_ROW:,} bytes, which are held in memory",
                hint="write it as JSONL: one object per line",
            )
    return "" if all(map(str.isspace, parts)) else "".join(parts)


def _parsed(text: str, decoder: Decoder, *, row: int | None = None) -> Any:
    """The value of a row, or of a whole file."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # nesting, or a number of thousands of digits
        fault = f"cannot be read as JSON: {error}"
        if isinstance(error, json.JSONDecodeError):
            line = f"line {error.lineno:,}, " if error.lineno > 1 else ""
            fault = f"not JSON: {error.msg.removesuffix(' at')} at {line}column {error.colno:,}"
        place, hint = (f"row {row:,}: ", ROW_HINT) if row else ("", FILE_HINT)
        raise DataError(f"{decoder.path}: {place}{fault}", hint=hint) from error


def _text(value: Any, row: int, decoder: Decoder, text_key: str) -> str:
    key = ""
    if isinstance(value, dict):
        if text_key not in value:
            raise no_text_key(f"{decoder.path}: row {row:,}", text_key, value, kind="key")
        value, key = value[text_key], f'"{text_key}" '
        if value is None:
            return ""
    if isinstance(value, str):
        return decoder.whole(value, row)
    raise DataError(
        f"{decoder.path}: row {row:,}: {key}is {KINDS.get(type(value), 'a number')}, not text",
        hint=f'a row should be an object whose key "{text_key}" has a text',
    )
