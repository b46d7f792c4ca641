"""What the file formats have in common: chunks of rows, numbered lines of text, and the check of columns."""

import codecs
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, Protocol

import pyarrow as pa

from table_files.errors import TableFileError

Row = tuple[int, dict[str, Any]]
"""Number of the row's first line, from 1 (Parquet: of the row); the values of the columns asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive rows of one file, and where they are in it."""

    start: int
    """Index of the first row in the file, from 0."""
    rows: int
    line: int = 0
    """Number of the first row's line, from 1; 0 in Parquet."""
    offset: int = 0
    """Byte where the first row begins; 0 in Parquet, whose rows are found by their index."""
    bytes: int = 0
    """From the first row's begin to the last row's end; 0 in Parquet."""


class Format(Protocol):
    """One kind of file. Methods take a binary file open at its start and raise TableFileError or pyarrow's errors."""

    def rows(self, file: BinaryIO, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
        """The values of `columns`, row by row, as the file has them, and of those in `optional` that a row has."""
        ...

    def cut(self, file: BinaryIO, chunk_rows: int) -> Iterator[tuple[Chunk, pa.Schema]]:
        """Chunks of `chunk_rows` rows (the last may have fewer), each with its schema; none of a file without rows."""
        ...

    def read(self, file: BinaryIO, chunk: Chunk, schema: pa.Schema) -> pa.Table:
        """A chunk's rows; columns may be missing, and types be narrower than in `schema`."""
        ...


class Line(NamedTuple):
    """One line of a text file."""

    number: int
    """From 1."""
    offset: int
    """Byte where it begins, after a byte order mark."""
    raw: bytes
    """With its line end."""
    text: str
    """`raw`, decoded."""

    @property
    def end(self) -> int:
        """Byte where the next line begins."""
        return self.offset + len(self.raw)


def text_lines(file: BinaryIO, number: int = 1, offset: int = 0) -> Iterator[Line]:
    r"""Lines from the file's position on, ended by \n alone; a UTF-8 byte order mark before the first is left out.

    Args:
        number: of the first line that comes.
        offset: the file's position.

    Raises:
        TableFileError: a line is not UTF-8.
    """
    for count, whole in enumerate(file, start=number):
        raw = whole.removeprefix(codecs.BOM_UTF8) if count == 1 else whole
        offset += len(whole) - len(raw)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            byte = f"byte {error.start + 1} of the line is 0x{raw[error.start]:02x}"
            raise TableFileError(count, f"not UTF-8: {byte}; save the file as UTF-8") from None
        line = Line(count, offset, raw, text)
        yield line
        offset = line.end


def pick(has: Collection[str], columns: Sequence[str], optional: Sequence[str]) -> list[str]:
    """The names to read: `columns`, then those of `optional` that a file or row has, each once."""
    return list(dict.fromkeys([*columns, *(name for name in optional if name in has)]))


def check_columns(line: int | None, has: Sequence[str], wants: Sequence[str]) -> None:
    """Raises TableFileError where `has` lacks one of `wants`, or has it twice."""
    for name in wants:
        if name not in has:
            listed = ", ".join(has[:20]) or "none"
            spaced = next((each for each in has if each.strip() == name), None)
            hint = "" if spaced is None else f"; remove the spaces in its column {spaced!r}"
            needs = f"the task needs {', '.join(wants)}, the file has {listed}{hint}"
            raise TableFileError(line, f"no column {name!r}; {needs}")
        if has.count(name) > 1:
            raise TableFileError(line, f"{has.count(name)} columns are named {name!r}; keep one")
