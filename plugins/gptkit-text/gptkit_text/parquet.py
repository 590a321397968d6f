"""The texts of a column of a Parquet file."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptkit.plugin import DataError, open_file
from gptkit_text.compression import missing
from gptkit_text.decoding import Decoder
from gptkit_text.rows import MOST_ROW, no_text_key

BATCH = 1 << 20  # bytes of text at a time, about
MOST_BATCH = 1 << 26  # bytes of text at a time, where values may be far longer than they are stored
MOST_ROWS = 1 << 16  # at a time: nulls, and values that are stored once, take no bytes
BUFFER = 1 << 20  # bytes read at a time, in place of a whole row group
REPEATING = {"PLAIN_DICTIONARY", "RLE_DICTIONARY", "DELTA_BYTE_ARRAY"}
"""Encodings that store once what several values have in common."""
TEXTS = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null")


def parquet_texts(
    path: Path, decoder: Decoder, text_key: str, advance: Callable[[int], None]
) -> Iterator[str]:
    """The values of one column; that of null is "".

    Raises:
        OSError: the file cannot be opened.
        DataError: pyarrow is not installed, or the file is not Parquet, is damaged, or has no
            such column of text.
    """
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise missing(path, "pyarrow", "parquet") from error
    with open_file(path) as raw:
        try:
            file = ParquetFile(raw)
            _check_column(file.schema_arrow, path, text_key)
            shared = [text_key] if _shares_values(file.metadata, text_key) else None
            file = ParquetFile(
                raw, metadata=file.metadata, buffer_size=BUFFER, read_dictionary=shared
            )
            done, size, rows = 0, path.stat().st_size, file.metadata.num_rows
            for batch in _batches(file, text_key):
                for row, value in enumerate(_values(batch), done + 1):
                    _check_length(value, path, row)
                    yield "" if value is None else decoder.value(value, row)
                advance(size * (done + len(batch)) // rows - size * done // rows)
                done += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path}: cannot be read as Parquet: {error}", hint="fetch or write the file again"
            ) from error


def _check_column(schema: Any, path: Path, text_key: str) -> None:
    from pyarrow.types import is_dictionary

    if text_key not in schema.names:
        raise no_text_key(f"{path}", text_key, schema.names, kind="column")
    kind = schema.field(text_key).type
    if str(kind.value_type if is_dictionary(kind) else kind) not in TEXTS:
        raise DataError(
            f'{path}: the column "{text_key}" has no text, but {kind}',
            hint="set text_key in [dataset] to the column that has the text",
        )


def _check_length(value: bytes | None, path: Path, row: int) -> None:
    if value and len(value) > MOST_ROW:
        raise DataError(
            f"{path}: row {row:,}: is longer than {MOST_ROW:,} bytes",
            hint="split it into several rows",
        )


def _chunks(metadata: Any, text_key: str) -> Iterator[Any]:
    """What the file says of the column in each row group."""
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        columns = {group.column(i).path_in_schema: i for i in range(group.num_columns)}
        yield group.column(columns[text_key])


def _shares_values(metadata: Any, text_key: str) -> bool:
    """Whether to read values that many rows have as indices: else each row has its own copy."""
    encodings = {name for chunk in _chunks(metadata, text_key) for name in chunk.encodings}
    has_dictionary = any(name.endswith("DICTIONARY") for name in encodings)
    return has_dictionary and not any(name.startswith("DELTA") for name in encodings)


def _batches(file: Any, text_key: str) -> Iterator[Any]:
    """The column in arrays of about BATCH bytes, at most MOST_BATCH or one row."""
    shares = _shares_values(file.metadata, text_key)
    for index, chunk in enumerate(_chunks(file.metadata, text_key)):
        size = chunk.total_uncompressed_size
        rows = min(MOST_ROWS, BATCH * chunk.num_values // max(size, BATCH))
        if not shares and set(chunk.encodings) & REPEATING:
            rows = min(rows, MOST_BATCH // max(size, 1))  # no value is longer than all are stored
        for batch in file.iter_batches(max(rows, 1), row_groups=[index], columns=[text_key]):
            yield batch.column(0)


def _values(column: Any) -> Iterator[bytes | None]:
    """The values of an array, of which only one is copied at a time."""
    import pyarrow as pa

    if not isinstance(column, pa.DictionaryArray):
        yield from (scalar.as_py() for scalar in column.cast(pa.large_binary()))
        return
    dictionary = column.dictionary
    for index in column.indices.to_pylist():
        buffer = None if index is None else dictionary[index].as_buffer()
        yield None if buffer is None else buffer.to_pybytes()
