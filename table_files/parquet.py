"""Parquet: rows by their index, found through the file's row groups. Values keep their types."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from table_files.errors import TableFileError
from table_files.format import Chunk, Row, check_columns, pick

BATCH_ROWS = 1024
"""Rows that are decoded at a time."""


class Parquet:
    """The format of .parquet files; see `table_files.format.Format`."""

    def rows(self, file: BinaryIO, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
        """Each row's values of `columns`. Raises TableFileError: no such column, or a value Python cannot hold."""
        with _opened(file) as table:
            names = pick(table.schema_arrow.names, columns, optional)
            check_columns(None, table.schema_arrow.names, names)
            first = 1
            for batch in table.iter_batches(BATCH_ROWS, columns=names):
                for index in range(batch.num_rows):
                    yield first + index, {name: _value(first, index, name, batch) for name in names}
                first += batch.num_rows

    def class_names(self, file: BinaryIO) -> dict[str, list[str]]:
        """By column: the names of its classes, for the columns whose values are positions in them.

        From what the library `datasets` writes into the schema's metadata, for its features of type ClassLabel and
        lists of them.
        """
        with _opened(file) as table:
            text = (table.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        try:
            features = json.loads(text)["info"]["features"]
            return {
                column: [str(name) for name in inner["names"]]
                for column, feature in features.items()
                if (inner := _inner(feature)).get("_type") == "ClassLabel"
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # another program's metadata
            return {}

    def cut(self, file: BinaryIO, chunk_rows: int) -> Iterator[tuple[Chunk, pa.Schema]]:
        """Chunks by the file's metadata alone."""
        with _opened(file) as table:
            schema = table.schema_arrow.remove_metadata()
            count = table.metadata.num_rows
        for start in range(0, count, chunk_rows):
            yield Chunk(start=start, rows=min(chunk_rows, count - start)), schema

    def read(self, file: BinaryIO, chunk: Chunk, schema: pa.Schema) -> pa.Table:
        """All columns of the file; decodes the row groups that hold the chunk."""
        with _opened(file) as table:
            groups, skip = _groups(table.metadata, chunk.start, chunk.rows)
            batches = list(_slice(table.iter_batches(BATCH_ROWS, groups), skip, chunk.rows))
            return pa.Table.from_batches(batches, table.schema_arrow.remove_metadata())


def _inner(feature: Any) -> dict[str, Any]:
    """The feature of a list's values, or the feature itself: `datasets` writes lists in several ways."""
    inner = feature[0] if isinstance(feature, list) and feature else feature
    inner = inner.get("feature", inner) if isinstance(inner, dict) else inner
    return inner if isinstance(inner, dict) else {}


@contextmanager
def _opened(file: BinaryIO) -> Iterator[pq.ParquetFile]:
    """Raises TableFileError for what pyarrow finds wrong with the file within."""
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as table:
            yield table
    except (pa.ArrowException, UnicodeDecodeError) as error:  # the latter: a damaged column name
        why = str(error).partition("\n")[0]
        raise TableFileError(None, f"bad Parquet: {why}") from error


def _value(first: int, index: int, name: str, batch: pa.RecordBatch) -> Any:
    try:
        return batch.column(name)[index].as_py()
    except UnicodeDecodeError:
        raise TableFileError(first + index, f"column {name!r} is not UTF-8") from None
    except (ValueError, OverflowError) as error:  # a time that Python's types are too coarse or too short for
        raise TableFileError(first + index, f"column {name!r} holds a value that does not read: {error}") from None


def _groups(metadata: pq.FileMetaData, start: int, rows: int) -> tuple[list[int], int]:
    """The row groups that hold these rows, and how many rows of the first group come before them."""
    groups: list[int] = []
    skip = 0
    first = 0
    for group in range(metadata.num_row_groups):
        after = first + metadata.row_group(group).num_rows
        if first < start + rows and after > start:
            skip = skip if groups else start - first
            groups.append(group)
        first = after
    return groups, skip


def _slice(batches: Iterable[pa.RecordBatch], skip: int, rows: int) -> Iterator[pa.RecordBatch]:
    """`rows` rows of the batches, after the first `skip`."""
    for batch in batches:
        if not rows:
            return
        part = batch.slice(skip, rows).replace_schema_metadata(None)
        skip = max(skip - batch.num_rows, 0)
        rows -= part.num_rows
        yield part
