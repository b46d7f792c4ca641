"""Rows out of .jsonl, .csv, .tsv and .parquet files, one at a time, each with its place in the file.

Knows formats and columns, no tasks: values come as the file has them (CSV and TSV: all text). Columns not asked for are
ignored; blank lines are skipped; a UTF-8 byte order mark is allowed.

CSV and TSV have a header row and RFC 4180's quotes, as spreadsheets and pandas write them: a value with the delimiter,
a quote or a line end in it is quoted, and quotes inside are doubled. A TSV value cannot hold both a tab and a line end:
that is how a quote that was never closed looks.
"""

import codecs
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.errors import DataError

Row = tuple[int, dict[str, Any]]
"""Number of the row's first line (Parquet: of the row), from 1; the values of the columns asked for."""

PARQUET_BATCH_ROWS = 1024

QUOTING = 'quote values with delimiters, line ends or quotes in them, and double these quotes: "a ""good"" film"'


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Stream the rows of a file, whose format its suffix tells.

    Raises:
        DataError: unreadable, another suffix, not UTF-8, bad JSON, CSV or Parquet, a column missing.
    """
    try:
        match path.suffix.lower():
            case ".jsonl":
                yield from _read_jsonl(path, columns)
            case ".csv":
                yield from _read_csv(path, columns, delimiter=",")
            case ".tsv":
                yield from _read_csv(path, columns, delimiter="\t")
            case ".parquet":
                yield from _read_parquet(path, columns)
            case suffix:
                raise DataError(
                    path, None, f"cannot read {suffix or 'a file without suffix'}; use .jsonl, .csv, .tsv or .parquet"
                )
    except OSError as error:
        raise DataError(path, None, error.strerror or str(error)) from error


def _read_jsonl(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    for number, line in _text_lines(path):
        if not line.strip():
            continue
        row = _parse_json(path, number, line)
        _check_columns(path, number, list(row), columns)
        yield number, {name: row[name] for name in columns}


def _parse_json(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        why = f"bad JSON: {error.msg} at column {error.colno}; each line is one JSON object"
        raise DataError(path, number, why) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise DataError(path, number, f"bad JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(path, number, "not a JSON object; each line is one, with a name and a value for each column")
    return row


def _read_csv(path: Path, columns: Sequence[str], *, delimiter: str) -> Iterator[Row]:
    records = _csv_records(path, delimiter)
    start, header = next(records, (0, []))
    if not header:
        raise DataError(path, None, f"empty; the first line names the columns: {', '.join(columns)}")
    _check_columns(path, start, header, columns)
    positions = {name: header.index(name) for name in columns}
    for number, record in records:
        if len(record) != len(header):
            raise DataError(
                path, number, f"{len(record)} values, but the header names {len(header)} columns; {QUOTING}"
            )
        yield number, {name: record[position] for name, position in positions.items()}


def _csv_records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((line for _, line in _text_lines(path)), delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise DataError(path, start, _csv_fault(path, str(error))) from None
        if record is None:
            return
        if delimiter == "\t" and reader.line_num > start:
            _check_quotes_closed(path, start, record)
        if record and (len(record) > 1 or record[0].strip()):
            yield start, record


def _csv_fault(path: Path, error: str) -> str:
    if error.startswith("new-line character"):  # csv's own text speaks of how it was called
        return r"a lone carriage return; end lines with \n or \r\n"
    return f"bad {path.suffix[1:].upper()}: {error}; {QUOTING}"


def _check_quotes_closed(path: Path, start: int, record: list[str]) -> None:
    """Many TSV files are written without quoting; one stray quote in them would swallow the rows up to the next."""
    if any("\t" in value and "\n" in value for value in record):
        raise DataError(path, start, f"a quote that opens here closes in a later row; {QUOTING}")


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    try:
        with path.open("rb") as opened, pq.ParquetFile(opened, page_checksum_verification=True) as file:
            _check_columns(path, None, file.schema_arrow.names, columns)
            first = 1
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=list(columns)):
                for offset in range(batch.num_rows):
                    yield first + offset, {name: _cell(path, first, offset, name, batch) for name in columns}
                first += batch.num_rows
    except (pa.ArrowException, UnicodeDecodeError) as error:  # the latter: a damaged column name
        why = str(error).partition("\n")[0]
        raise DataError(path, None, f"bad Parquet: {why}") from error


def _cell(path: Path, first: int, offset: int, name: str, batch: pa.RecordBatch) -> Any:
    try:
        return batch.column(name)[offset].as_py()
    except UnicodeDecodeError:
        raise DataError(path, first + offset, f"column {name!r} is not UTF-8") from None


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Decoded line by line, so that the line that is not UTF-8 is known."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            raw = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            try:
                line = raw.decode()
            except UnicodeDecodeError as error:
                why = (
                    f"not UTF-8: byte {error.start + 1} of the line is 0x{raw[error.start]:02x}; save the file as UTF-8"
                )
                raise DataError(path, number, why) from None
            yield number, line


def _check_columns(path: Path, line: int | None, has: Sequence[str], wants: Sequence[str]) -> None:
    for name in wants:
        if name not in has:
            listed = ", ".join(has[:20]) or "none"
            raise DataError(path, line, f"no column {name!r}; the task needs {', '.join(wants)}, the file has {listed}")
        if has.count(name) > 1:
            raise DataError(path, line, f"{has.count(name)} columns are named {name!r}; keep one")
