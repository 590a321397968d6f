"""The texts of a column of a Parquet file."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptkit.plugin import DataError, open_file
from gptkit_text.compression import missing
from gptkit_text.decoding import Decoder
from gptkit_text.rows import no_text_key

BATCH = 1 << 20  # bytes of text at a time, about
BUFFER = 1 << 20  # bytes read at a time, in place of a whole row group
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
            file = ParquetFile(raw, buffer_size=BUFFER)
            _check_column(file.schema_arrow, path, text_key)
            done, size, rows = 0, path.stat().st_size, file.metadata.num_rows
            for batch in _batches(file, text_key):
                for row, value in enumerate(batch, done + 1):
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


def _batches(file: Any, text_key: str) -> Iterator[list[bytes | None]]:
    """The column's values in lists of about BATCH bytes."""
    import pyarrow as pa

    for index in range(file.num_row_groups):
        group = file.metadata.row_group(index)
        sizes = {group.column(i).path_in_schema: i for i in range(group.num_columns)}
        size = group.column(sizes[text_key]).total_uncompressed_size
        rows = max(1, BATCH * group.num_rows // max(size, BATCH))
        for batch in file.iter_batches(rows, row_groups=[index], columns=[text_key]):
            values = batch.column(0)
            if isinstance(values, pa.DictionaryArray):
                values = values.dictionary_decode()
            yield values.cast(pa.large_binary()).to_pylist()
