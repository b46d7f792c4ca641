"""Datasets on disk: lists their files, cuts them in shards, and reads one shard.

A shard is a run of rows of one file. The cut depends on the files and on `shard_rows` alone, so that a run which was
interrupted finds its shards again. Parquet is cut by its metadata; JSON lines, CSV and TSV are read once before the
work: to count rows, to find damage, and to find one schema for all files. `table_files` knows the formats.

Knows files and file systems: no tasks, no Ray.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from serving.offline.errors import UnreadableInput
from table_files import FORMATS, Chunk, TableFileError, cut, format_of, read_chunk

WILDCARDS = frozenset("*?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One data file, as it was when it was listed."""

    path: str
    """On its file system."""
    bytes: int
    modified_ns: int | None
    """Nanoseconds since 1970; None where its file system does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard(Chunk):
    """A chunk of one of the files."""

    index: int
    """Its number among all shards, in the input's order."""
    path: str


@dataclass(frozen=True, slots=True)
class Inputs:
    """A dataset's files, their common schema and their cut."""

    files: tuple[InputFile, ...]
    schema: pa.Schema
    """Of all files: where they differ, the wider type; a column that a file lacks is null there."""
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(shard.rows for shard in self.shards)


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
            infos = [info]
        elif info.type is fs.FileType.Directory:
            infos = [info for info in _files_below(files, path) if _is_data(info.path, path)]
        elif WILDCARDS & set(path):
            infos = [info for info in _files_below(files, _fixed_part(path)) if _matches(info.path, path)]
        else:
            raise UnreadableInput(where, "there is no such file or folder")
    except (pa.ArrowException, OSError) as error:
        raise UnreadableInput(where, _line(error)) from None
    if not infos:
        raise UnreadableInput(where, f"holds no {', '.join(FORMATS)} files")
    suffixes = sorted({PurePosixPath(info.path).suffix.lower() for info in infos})
    if len(suffixes) > 1:
        raise UnreadableInput(where, f"holds {' and '.join(suffixes)} files; choose one kind by a pattern")
    with _errors_of(infos[0].path):
        format_of(infos[0].path)
    listed = [InputFile(path=info.path, bytes=info.size, modified_ns=info.mtime_ns) for info in infos]
    return tuple(sorted(listed, key=lambda file: file.path))


def would_list(where: str, path: str) -> bool:
    """Whether `list_files(where)` would list a data file at `path` if there were one."""
    _, top = filesystem_of(where)
    if WILDCARDS & set(top):
        return _matches(path, top)
    return PurePosixPath(path).is_relative_to(top) and _is_data(path, top)


def _files_below(files: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    infos = files.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    return [info for info in infos if info.type is fs.FileType.File]


def _is_data(path: str, folder: str) -> bool:
    relative = PurePosixPath(path).relative_to(folder)
    return relative.suffix.lower() in FORMATS and not any(part.startswith(("_", ".")) for part in relative.parts)


def _matches(path: str, pattern: str) -> bool:
    """PurePath.match alone would compare the last parts of a longer path."""
    return len(PurePosixPath(path).parts) == len(PurePosixPath(pattern).parts) and PurePosixPath(path).match(pattern)


def _fixed_part(pattern: str) -> str:
    """The folder above the first wildcard."""
    parts = PurePosixPath(pattern).parts
    count = next(index for index, part in enumerate(parts) if WILDCARDS & set(part))
    return PurePosixPath(*parts[:count]).as_posix()


def scan(
    where: str,
    files: Sequence[InputFile],
    shard_rows: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Inputs:
    """Cut the files in shards of at most `shard_rows` rows.

    Args:
        progress: called with the number of files that are done, and of all files.

    Raises:
        UnreadableInput: damaged, with columns of types that do not go together, or without a row.
    """
    filesystem, _ = filesystem_of(where)
    shards: list[Shard] = []
    schema = pa.schema([])
    for count, file in enumerate(files):
        progress(count, len(files))
        with _errors_of(file.path), filesystem.open_input_file(file.path) as opened:
            for chunk, other in cut(opened, format_of(file.path), shard_rows):
                schema = pa.unify_schemas([schema, other], promote_options="permissive")
                shards.append(Shard(index=len(shards), path=file.path, **asdict(chunk)))
    progress(len(files), len(files))
    if not shards:
        raise UnreadableInput(where, "holds no rows")
    return Inputs(tuple(files), schema, tuple(shards))


def read(where: str, shard: Shard, schema: pa.Schema) -> pa.Table:
    """A shard's rows, with the columns of `schema`.

    Raises:
        UnreadableInput: damaged, or not what it was when it was cut.
    """
    filesystem, _ = filesystem_of(where)
    with _errors_of(shard.path), filesystem.open_input_file(shard.path) as file:
        return read_chunk(file, format_of(shard.path), shard, schema)


@contextmanager
def _errors_of(path: str) -> Iterator[None]:
    """Errors within become an UnreadableInput of this file."""
    try:
        yield
    except (TableFileError, pa.ArrowException, OSError) as error:
        raise UnreadableInput(path, _line(error)) from None


def _line(error: BaseException) -> str:
    strerror = getattr(error, "strerror", None)
    return strerror or " ".join(str(error).split())[:300]
