"""JSON lines: one JSON object a line. Blank lines are skipped; a name that an object has twice is refused.

Single rows are parsed by Python's json, which keeps every value as it is written and knows the column of a mistake;
chunks by pyarrow, into typed columns. What looks like a time stays the text that it is.
"""

import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.json as pj

from table_files.errors import TableFileError
from table_files.format import Chunk, Line, Row, check_columns, pick, text_lines

MAX_DEPTH = 100
"""Objects and arrays inside each other. pyarrow's parser has no limit of its own: some 20,000 overflow its stack."""
BRACKETS = re.compile(r"[][{}]")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"?')


class JsonLines:
    """The format of .jsonl files; see `table_files.format.Format`."""

    def rows(self, file: BinaryIO, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
        """Each line's values of `columns`. Raises TableFileError: bad JSON, no object, or a column missing."""
        for line in _row_lines(file):
            row = _parse(line)
            check_columns(line.number, list(row), columns)
            yield line.number, {name: row[name] for name in pick(row, columns, optional)}

    def cut(self, file: BinaryIO, chunk_rows: int) -> Iterator[tuple[Chunk, pa.Schema]]:
        """Chunks by their bytes. Raises TableFileError: bad JSON, or values of several types in a column."""
        lines = _row_lines(file)
        start = 0
        while batch := list(islice(lines, chunk_rows)):
            first = batch[0]
            size = batch[-1].end - first.offset
            chunk = Chunk(start=start, rows=len(batch), line=first.number, offset=first.offset, bytes=size)
            yield chunk, _schema_of(batch)
            start += len(batch)

    def read(self, file: BinaryIO, chunk: Chunk, schema: pa.Schema) -> pa.Table:
        """The columns of `schema`, null where no row has them, then those of the chunk that it lacks."""
        file.seek(chunk.offset)
        data = file.read(chunk.bytes)
        lines = _row_lines(io.BytesIO(data))  # not the blank ones: some that are blank here are not to pyarrow
        return _table(b"".join(line.raw for line in lines), schema)


def _row_lines(file: BinaryIO) -> Iterator[Line]:
    for line in text_lines(file):
        text = line.text.strip()
        if not text:
            continue
        _check_depth(line)
        if not (text.startswith("{") and text.endswith("}")):
            _parse(line)  # names the mistake; pyarrow would read on in the next line, and nest deeper with each
        yield line


def _check_depth(line: Line) -> None:
    """Raises TableFileError: deeper than MAX_DEPTH."""
    if line.raw.count(b"[") + line.raw.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in BRACKETS.findall(STRING.sub("", line.text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            why = f"more than {MAX_DEPTH} objects and arrays inside each other; nest the values less"
            raise TableFileError(line.number, why)


def _parse(line: Line) -> dict[str, Any]:
    try:
        row = json.loads(line.text.rstrip(), object_pairs_hook=_object)
    except _GivenTwice as error:
        raise TableFileError(line.number, f"the key {error.key!r} is given twice; keep one") from None
    except json.JSONDecodeError as error:
        why = f"bad JSON: {error.msg} at column {error.colno}; each line is one JSON object"
        raise TableFileError(line.number, why) from None
    except ValueError:  # Python's limit for whole numbers
        why = f"bad JSON: a number has more than {sys.get_int_max_str_digits():,} digits; write it as a text"
        raise TableFileError(line.number, why) from None
    if not isinstance(row, dict):
        why = "not a JSON object; each line is one, with a name and a value for each column"
        raise TableFileError(line.number, why)
    return row


class _GivenTwice(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Python's json would keep the last of two values with the same key."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _GivenTwice(next(key for key in keys if keys.count(key) > 1))
    return values


def _schema_of(lines: Sequence[Line]) -> pa.Schema:
    """Types that pyarrow finds in the lines, times as text."""
    try:
        table = _table(b"".join(line.raw for line in lines), None)
        if table.num_rows != len(lines):
            raise pa.ArrowInvalid("rows are not one a line")
    except pa.ArrowInvalid as error:
        for line in lines:  # a line that is wrong by itself is named; else they do not go together
            _parse(line)
        text = " ".join(str(error).split())[:300]
        raise TableFileError(lines[0].number, f"in the {len(lines)} rows from here on: {text}") from None
    return pa.schema([pa.field(field.name, _without_times(field.type)) for field in table.schema])


def _table(data: bytes, schema: pa.Schema | None) -> pa.Table:
    reading = pj.ReadOptions(use_threads=False, block_size=len(data) + 1)
    return pj.read_json(pa.BufferReader(data), reading, pj.ParseOptions(explicit_schema=schema))


def _without_times(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_times(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _without_times(field.type)) for field in kind])
    return kind
