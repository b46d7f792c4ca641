"""Datasets on disk: which files there are, how they are cut in shards, and how one shard is read.

A shard is a run of rows of one file. The cut depends on the files and on `shard_rows` alone, so that a run which was
interrupted finds its shards again. Parquet is cut by its metadata; JSON lines, CSV and TSV are read once before the
work: to count rows, to find damage, and to find one schema for all files. Values of CSV and TSV stay text.

Knows formats and file systems: no tasks, no Ray.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.json as pj
import pyarrow.parquet as pq
from pyarrow import fs

from serving.offline.errors import UnreadableInput

BATCH_ROWS = 8192
"""Rows of a Parquet file that are decoded at a time."""
BOM = b"\xef\xbb\xbf"
WILDCARDS = frozenset("*?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    path: str
    """On its file system."""
    bytes: int
    modified_ns: int | None
    """When, since 1970; None where its file system does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Some rows of one file."""

    index: int
    """Among all shards, in the input's order."""
    path: str
    start: int
    """Its first row in the file."""
    rows: int
    offset: int = 0
    """Where its bytes are, in a file of lines."""
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Inputs:
    """A dataset that was looked through."""

    files: tuple[InputFile, ...]
    schema: pa.Schema
    """Of all files: where they differ, the wider type; a column that a file lacks is null there."""
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


@dataclass(frozen=True, slots=True)
class _Piece:
    """The rows of a shard, and what they are."""

    rows: int
    schema: pa.Schema
    offset: int = 0
    bytes: int = 0


def filesystem_of(where: str) -> tuple[fs.FileSystem, str]:
    """A local path or a URL as its file system and the path on it.

    Raises:
        UnreadableInput: a URL of no file system that is known here.
    """
    if "://" not in where:
        return fs.LocalFileSystem(), Path(where).expanduser().absolute().as_posix()
    try:
        return fs.FileSystem.from_uri(where)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UnreadableInput(where, _line(error)) from None


def list_files(where: str) -> tuple[InputFile, ...]:
    """The data files of a file, a folder (with those below it) or a pattern (`data/2026-*.jsonl`), by name.

    In folders, names that begin with `_` or `.` are left out.

    Raises:
        UnreadableInput: nothing is there, or files of several formats.
    """
    files, path = filesystem_of(where)
    try:
        [info] = files.get_file_info([path])
        if info.type is fs.FileType.File:
            found = [info]
        elif info.type is fs.FileType.Directory:
            found = [each for each in _below(files, path) if _is_data(each.path, path)]
        elif WILDCARDS & set(path):
            found = [each for each in _below(files, _fixed(path)) if _matches(each.path, path)]
        else:
            raise UnreadableInput(where, "there is no such file or folder")
    except (pa.ArrowException, OSError) as error:
        raise UnreadableInput(where, _line(error)) from None
    if not found:
        raise UnreadableInput(where, f"holds no {', '.join(FORMATS)} files")
    suffixes = sorted({_suffix(each.path) for each in found})
    if len(suffixes) > 1:
        raise UnreadableInput(where, f"holds {' and '.join(suffixes)} files; choose one kind by a pattern")
    _format(found[0].path)
    return tuple(
        InputFile(path=each.path, bytes=each.size, modified_ns=each.mtime_ns)
        for each in sorted(found, key=lambda each: each.path)
    )


def would_list(where: str, path: str) -> bool:
    """Whether `list_files` finds a data file of that path, once it is there."""
    _, top = filesystem_of(where)
    if WILDCARDS & set(top):
        return _matches(path, top)
    return PurePosixPath(path).is_relative_to(top) and _is_data(path, top)


def _below(files: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    below = files.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    return [each for each in below if each.type is fs.FileType.File]


def _is_data(path: str, folder: str) -> bool:
    parts = PurePosixPath(path).relative_to(folder).parts
    return _suffix(path) in FORMATS and not any(part.startswith(("_", ".")) for part in parts)


def _matches(path: str, pattern: str) -> bool:
    found, wanted = PurePosixPath(path), PurePosixPath(pattern)
    return len(found.parts) == len(wanted.parts) and found.match(pattern)


def _fixed(pattern: str) -> str:
    """The folder above the first wildcard."""
    parts = PurePosixPath(pattern).parts
    count = next(place for place, part in enumerate(parts) if WILDCARDS & set(part))
    return PurePosixPath(*parts[:count]).as_posix()


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def scan(
    where: str,
    files: Sequence[InputFile],
    shard_rows: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Inputs:
    """Cut the files in shards of at most `shard_rows` rows.

    Args:
        progress: told the files that are done, and all.

    Raises:
        UnreadableInput: damaged, of columns that do not go together, or without a row.
    """
    filesystem, _ = filesystem_of(where)
    shards: list[Shard] = []
    schema = pa.schema([])
    for count, file in enumerate(files):
        progress(count, len(files))
        start = 0
        with _reading(file.path):
            for piece in _format(file.path).pieces(filesystem, file.path, shard_rows):
                schema = _widened(schema, piece.schema)
                where_in_file = {"start": start, "offset": piece.offset, "bytes": piece.bytes}
                shards.append(Shard(index=len(shards), path=file.path, rows=piece.rows, **where_in_file))
                start += piece.rows
    progress(len(files), len(files))
    if not shards:
        raise UnreadableInput(where, "holds no rows")
    return Inputs(tuple(files), schema, tuple(shards))


def _widened(schema: pa.Schema, other: pa.Schema) -> pa.Schema:
    if len(set(other.names)) < len(other.names):
        raise pa.ArrowInvalid("two columns have the same name")
    return pa.unify_schemas([schema, other.remove_metadata()], promote_options="permissive")


def read(where: str, shard: Shard, schema: pa.Schema) -> pa.Table:
    """A shard's rows, with the columns of `schema`.

    Raises:
        UnreadableInput: damaged, or not what it was when it was cut.
    """
    filesystem, _ = filesystem_of(where)
    with _reading(shard.path):
        table = _format(shard.path).read(filesystem, shard, schema)
        if table.num_rows != shard.rows:
            raise pa.ArrowInvalid("it was changed while it was read")
        columns = [
            table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(shard.rows, field.type)
            for field in schema
        ]
        return pa.table(columns, schema=schema)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Whatever goes wrong within is said of the file."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UnreadableInput(path, _line(error)) from None


def _line(error: BaseException) -> str:
    strerror = getattr(error, "strerror", None)
    return strerror or " ".join(str(error).split())[:300]


class _Parquet:
    def pieces(self, files: fs.FileSystem, path: str, shard_rows: int) -> Iterator[_Piece]:
        with files.open_input_file(path) as file, pq.ParquetFile(file) as opened:
            schema, rows = opened.schema_arrow, opened.metadata.num_rows
        for start in range(0, rows, shard_rows):
            yield _Piece(min(shard_rows, rows - start), schema)

    def read(self, files: fs.FileSystem, shard: Shard, schema: pa.Schema) -> pa.Table:
        with files.open_input_file(shard.path) as file, pq.ParquetFile(file) as opened:
            groups, skip = _groups(opened.metadata, shard.start, shard.rows)
            batches = list(_rows(opened.iter_batches(BATCH_ROWS, groups), skip, shard.rows))
            return pa.Table.from_batches(batches, opened.schema_arrow.remove_metadata())


def _groups(metadata: pq.FileMetaData, start: int, rows: int) -> tuple[list[int], int]:
    """The row groups that hold these rows, and how many rows of the first come before them."""
    groups, skip, first = [], 0, 0
    for group in range(metadata.num_row_groups):
        after = first + metadata.row_group(group).num_rows
        if first < start + rows and after > start:
            skip = skip if groups else start - first
            groups.append(group)
        first = after
    return groups, skip


def _rows(batches: Iterable[pa.RecordBatch], skip: int, rows: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if not rows:
            return
        own = batch.slice(skip, rows).replace_schema_metadata(None)
        skip, rows = max(skip - batch.num_rows, 0), rows - own.num_rows
        yield own


class _Lines:
    """Formats whose rows are lines, which are parsed a shard at a time."""

    space: bytes | None = None
    """What a line that is no row may hold; None: any white space."""

    def pieces(self, files: fs.FileSystem, path: str, shard_rows: int) -> Iterator[_Piece]:
        with files.open_input_file(path) as file, io.BufferedReader(file) as lines:  # type: ignore[arg-type]
            start, head = self._head(lines)
            for offset, chunk in self._chunks(lines, start, shard_rows):
                table = self._parse(chunk, head, None)
                if table.num_rows:
                    yield _Piece(table.num_rows, _as_written(table.schema), offset, len(chunk))

    def read(self, files: fs.FileSystem, shard: Shard, schema: pa.Schema) -> pa.Table:
        with files.open_input_file(shard.path) as file, io.BufferedReader(file) as lines:  # type: ignore[arg-type]
            _, head = self._head(lines)
            lines.seek(shard.offset)
            return self._parse(lines.read(shard.bytes), head, schema)

    def _head(self, lines: io.BufferedReader) -> tuple[int, list[str]]:
        """Where rows begin, and the columns' names where the file tells them there."""
        return len(BOM) * lines.peek(len(BOM)).startswith(BOM), []

    def _ends_open(self, line: bytes, is_open: bool) -> bool:
        """Whether the line ends within a quoted field, when it begins there or not."""
        return False

    def _parse(self, chunk: bytes, head: list[str], schema: pa.Schema | None) -> pa.Table:
        raise NotImplementedError

    def _chunks(self, lines: io.BufferedReader, start: int, rows: int) -> Iterator[tuple[int, bytes]]:
        """(where it begins, bytes) of so many rows each."""
        lines.seek(start)
        chunk, count, is_open, opened = bytearray(), 0, False, b""
        for line in lines:
            opened = opened if is_open else line
            chunk += line
            is_open = self._ends_open(line, is_open)
            count += not is_open and bool(line.strip(self.space))
            if count == rows:
                yield start, bytes(chunk)
                start, count, chunk = start + len(chunk), 0, bytearray()
        if is_open:
            raise pa.ArrowInvalid(f"a quote is never closed; it opens in the line {opened.decode(errors='replace')!r}")
        if chunk.strip(self.space):
            yield start, bytes(chunk)


class _Json(_Lines):
    def _parse(self, chunk: bytes, head: list[str], schema: pa.Schema | None) -> pa.Table:
        reading = pj.ReadOptions(use_threads=False, block_size=len(chunk) + 1)
        return pj.read_json(pa.BufferReader(chunk), reading, pj.ParseOptions(explicit_schema=schema))


def _as_written(schema: pa.Schema) -> pa.Schema:
    """What looks like a time stays the text that it is."""
    return pa.schema([pa.field(each.name, _without_times(each.type)) for each in schema])


def _without_times(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_times(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(each.name, _without_times(each.type)) for each in kind])
    return kind


class _Delimited(_Lines):
    """With a header row, and RFC 4180's quotes."""

    space = b"\r\n"

    def __init__(self, delimiter: str) -> None:
        self._parsing = pc.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        field = rf"""(?:^|[{delimiter}\r\n])"[^"]*(?:""[^"]*)*("?)"""
        self._quoted = re.compile(field.encode())  # as Arrow: a quote means something only where a field begins

    def _head(self, lines: io.BufferedReader) -> tuple[int, list[str]]:
        start, _ = super()._head(lines)
        for first, chunk in self._chunks(lines, start, 1):
            text = io.StringIO(chunk.decode().lstrip("\r\n"), newline="")
            return first + len(chunk), next(csv.reader(text, delimiter=self._parsing.delimiter))
        return start, []

    def _ends_open(self, line: bytes, is_open: bool) -> bool:
        if b'"' not in line:
            return is_open
        closings = [found[1] for found in self._quoted.finditer(b'"' + line if is_open else line)]
        return bool(closings) and not closings[-1]

    def _parse(self, chunk: bytes, head: list[str], schema: pa.Schema | None) -> pa.Table:
        if len(set(head)) < len(head):
            raise pa.ArrowInvalid("two columns have the same name")
        reading = pc.ReadOptions(use_threads=False, block_size=len(chunk) + 1, column_names=head)
        text = {name: pa.string() for name in head}
        converting = pc.ConvertOptions(column_types=text, strings_can_be_null=False)
        return pc.read_csv(pa.BufferReader(chunk), reading, self._parsing, converting)


FORMATS: dict[str, _Parquet | _Lines] = {
    ".parquet": _Parquet(),
    ".jsonl": _Json(),
    ".csv": _Delimited(","),
    ".tsv": _Delimited("\t"),
}


def _format(path: str) -> _Parquet | _Lines:
    if _suffix(path) not in FORMATS:
        raise UnreadableInput(path, f"is of no kind that can be read; use {', '.join(FORMATS)}")
    return FORMATS[_suffix(path)]
