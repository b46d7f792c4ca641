"""Reading files of rows in any of the formats: row by row, or cut in chunks that are read apart from each other.

A long job cuts a file once, keeps the chunks, and reads each where and when it likes:

    form = format_of(path)
    with filesystem.open_input_file(path) as file:
        chunks = list(cut(file, form, 4096))
    ...
    with filesystem.open_input_file(path) as file:
        table = read_chunk(file, form, chunk, schema)

`schema` is the caller's: usually of all chunks of all files, unified. Knows no paths, file systems or tasks: a file is
an open one, Python's or pyarrow's, at its start.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import BinaryIO

import pyarrow as pa

from table_files.delimited import Delimited
from table_files.errors import TableFileError
from table_files.format import Chunk, Format, Row
from table_files.json_lines import JsonLines
from table_files.parquet import Parquet

FORMATS: dict[str, Format] = {
    ".parquet": Parquet(),
    ".jsonl": JsonLines(),
    ".csv": Delimited(","),
    ".tsv": Delimited("\t"),
}
"""By the suffix of a file's name."""


def format_of(path: str | PurePath) -> Format:
    """The format of a file, by its name's suffix in any case.

    Raises:
        TableFileError: a suffix that is in none of FORMATS.
    """
    suffix = PurePath(path).suffix.lower()
    if suffix not in FORMATS:
        known = "use .jsonl, .csv, .tsv or .parquet"
        raise TableFileError(None, f"cannot read {suffix or 'a file without suffix'}; {known}")
    return FORMATS[suffix]


def read_rows(
    file: BinaryIO | pa.NativeFile, form: Format, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[Row]:
    """The rows of a file, one at a time, each with the number of its first line (Parquet: of the row), from 1.

    Values come as the file has them (CSV and TSV: all text). Columns that are not asked for are ignored; those in
    `optional` may be missing.

    Raises:
        TableFileError: damaged, not UTF-8, a bad row, or a column missing.
    """
    with _reading():
        yield from form.rows(_python_file(file, form), columns, optional)


def class_names(file: BinaryIO | pa.NativeFile, form: Format) -> dict[str, list[str]]:
    """By column: the names of its classes, where a Parquet file's metadata has them and its values are positions.

    `datasets` writes them. `read_rows` gives the positions all the same.

    Raises:
        TableFileError: damaged.
    """
    if not isinstance(form, Parquet):
        return {}
    with _reading():
        return form.class_names(_python_file(file, form))


def cut(file: BinaryIO | pa.NativeFile, form: Format, chunk_rows: int) -> Iterator[tuple[Chunk, pa.Schema]]:
    """Chunks of `chunk_rows` rows (the last may have fewer), each with its columns and their types.

    The chunks depend on the file and on `chunk_rows` alone. Text files are read whole and checked, Parquet is not.
    Nothing comes for a file without rows.

    Raises:
        TableFileError: damaged, not UTF-8, a bad row, or two columns of one name.
    """
    with _reading():
        for chunk, schema in form.cut(_python_file(file, form), chunk_rows):
            if len(set(schema.names)) < len(schema.names):
                raise TableFileError(None, "two columns have the same name")
            yield chunk, schema


def read_chunk(file: BinaryIO | pa.NativeFile, form: Format, chunk: Chunk, schema: pa.Schema) -> pa.Table:
    """A chunk's rows with the columns of `schema`, cast to its types; a column that the file lacks is null.

    Raises:
        TableFileError: damaged, or not the file that was cut.
    """
    with _reading():
        table = form.read(_python_file(file, form), chunk, schema)
        if table.num_rows != chunk.rows:
            raise TableFileError(None, "it was changed while it was read")
        return pa.table([_column(table, field) for field in schema], schema=schema)


def _column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    if field.name not in table.column_names:
        return pa.nulls(table.num_rows, field.type)
    column = table[field.name]
    # pyarrow cannot cast a slice of structs that have a field of nulls, not even to its own type
    return column if column.type == field.type else column.cast(field.type)


def _python_file(file: BinaryIO | pa.NativeFile, form: Format) -> BinaryIO:
    """Lines come out of Python's files alone; Parquet is fastest with pyarrow's own."""
    if isinstance(file, pa.NativeFile) and not isinstance(form, Parquet):
        return io.BufferedReader(file)  # type: ignore[arg-type, return-value]
    return file  # type: ignore[return-value]


@contextmanager
def _reading() -> Iterator[None]:
    """Turns what pyarrow and the operating system raise within into a TableFileError of one line."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        strerror = getattr(error, "strerror", None)
        raise TableFileError(None, strerror or " ".join(str(error).split())[:300]) from error
