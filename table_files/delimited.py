"""CSV and TSV: a header row and RFC 4180's quotes, as spreadsheets and pandas write them. All values are text.

A value with the delimiter, a quote or a line end in it is quoted, and quotes inside are doubled. Other quotes are read
as Python's csv module reads them: one within a value that does not begin with a quote is text, and so is what follows a
closing quote (`"x"y"z` is the value `xy"z`). A quote that is never closed is refused. A TSV value cannot hold both a
tab and a line end: that is how a quote that closes in a later row looks. Blank lines are skipped.

A CSV file whose header has semicolons and no comma is read with semicolons: so spreadsheets write it in languages whose
decimal sign is the comma.
"""

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from table_files.errors import TableFileError
from table_files.format import Chunk, Row, check_columns, pick, text_lines

QUOTING = 'quote values with delimiters, line ends or quotes in them, and double these quotes: "a ""good"" film"'
MAX_CHARACTERS = 2**24
"""Of one value. Python's own limit of 131,072 is shorter than some documents; none at all would let a quote that is
never closed read a large file whole."""


class _Record(NamedTuple):
    line: int
    offset: int
    end: int
    """Byte after its line end."""
    values: list[str]


class Delimited:
    """The format of .csv and .tsv files; see `table_files.format.Format`."""

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter
        self._name = "TSV" if delimiter == "\t" else "CSV"

    def rows(self, file: BinaryIO, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
        """Each row's values of `columns`. Raises TableFileError: no header, a column missing, or a bad row."""
        records = self._records(file, self._delimiter_of(file))
        header = next(records, None)
        if header is None:
            raise TableFileError(None, f"empty; the first line names the columns: {', '.join(columns)}")
        names = pick(header.values, columns, optional)
        check_columns(header.line, header.values, names)
        positions = {name: header.values.index(name) for name in names}
        for record in _checked(records, len(header.values)):
            yield record.line, {name: record.values[position] for name, position in positions.items()}

    def cut(self, file: BinaryIO, chunk_rows: int) -> Iterator[tuple[Chunk, pa.Schema]]:
        """Chunks by their bytes: none is cut within a quoted value. Raises TableFileError: a bad row."""
        records = self._records(file, self._delimiter_of(file))
        header = next(records, None)
        if header is None:
            return
        schema = pa.schema([(name, pa.string()) for name in header.values])
        body = _checked(records, len(header.values))
        start = 0
        while batch := list(islice(body, chunk_rows)):
            first = batch[0]
            size = batch[-1].end - first.offset
            yield Chunk(start=start, rows=len(batch), line=first.line, offset=first.offset, bytes=size), schema
            start += len(batch)

    def read(self, file: BinaryIO, chunk: Chunk, schema: pa.Schema) -> pa.Table:
        """All columns of the header. Raises TableFileError: a bad row."""
        delimiter = self._delimiter_of(file)
        first = next(self._records(file, delimiter), None)
        header = [] if first is None else first.values
        file.seek(chunk.offset)
        records = _checked(self._records(file, delimiter, chunk.line, chunk.offset), len(header))
        rows = [record.values for record in islice(records, chunk.rows)]
        columns = zip(*rows, strict=True) if rows else [()] * len(header)
        return pa.table([pa.array(column, pa.string()) for column in columns], names=header)

    def _delimiter_of(self, file: BinaryIO) -> str:
        """By the header, which the file's position is before and stays."""
        begin = file.tell()
        header = file.readline()
        file.seek(begin)
        return ";" if self._delimiter == "," and b";" in header and b"," not in header else self._delimiter

    def _records(self, file: BinaryIO, delimiter: str, line: int = 1, offset: int = 0) -> Iterator[_Record]:
        """Records from the file's position on. The csv module takes no line before it needs it: ends are exact."""
        end = offset
        last = ""
        is_over = False

        def texts() -> Iterator[str]:
            nonlocal end, last, is_over
            for text_line in text_lines(file, line, offset):
                end = text_line.end
                last = text_line.text
                yield last
            is_over = True

        csv.field_size_limit(MAX_CHARACTERS)  # the module's only way: for the whole process
        reader = csv.reader(texts(), delimiter=delimiter)
        while True:
            first = line + reader.line_num
            begin = end
            try:
                values = next(reader, None)
            except csv.Error as error:
                raise TableFileError(first, self._fault(str(error))) from None
            if values is None:
                return
            if is_over:  # the record wants a line more: it is within quotes
                raise TableFileError(first, f"a quote that opens here is never closed; {QUOTING}")
            if len(values) <= 1 and not last.strip():
                continue
            if self._delimiter == "\t" and line + reader.line_num > first + 1:
                _check_quotes_closed(first, values)
            yield _Record(first, begin, end, values)

    def _fault(self, error: str) -> str:
        if error.startswith("new-line character"):  # csv's own text speaks of how it was called
            return r"a lone carriage return; end lines with \n or \r\n"
        return f"bad {self._name}: {error}; {QUOTING}"


def _checked(records: Iterator[_Record], columns: int) -> Iterator[_Record]:
    for record in records:
        if len(record.values) != columns:
            why = f"{len(record.values)} values, but the header names {columns} columns; {QUOTING}"
            raise TableFileError(record.line, why)
        yield record


def _check_quotes_closed(line: int, values: Sequence[str]) -> None:
    """Many TSV files are written without quoting; one stray quote in them would swallow the rows up to the next."""
    if any("\t" in value and "\n" in value for value in values):
        raise TableFileError(line, f"a quote that opens here closes in a later row; {QUOTING}")
