"""The folder that a run fills: `_batch.json`, which says what the run is, and one part for each shard.

A part is written under another name and renamed when it is complete, so it is there with all of its rows or not at all.
Programs that read folders of Parquet ignore names that begin with `_`.
"""

import contextlib
import fcntl
import json
import math
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from serving.offline.errors import OutputTaken
from serving.offline.inputs import filesystem_of

JOB = "_batch.json"
UNFINISHED = "_unfinished"
PART = re.compile(r"part-(\d{8,})\.(parquet|jsonl)")
FORMATS = ("parquet", "jsonl")


def part_name(shard: int, form: str) -> str:
    """File name of a shard's part; `form` is one of FORMATS."""
    return f"part-{shard:08}.{form}"


class Output:
    """A folder, by its path or URL. It is created when the first file is written."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._files, self.path = filesystem_of(where)

    def job(self) -> bytes | None:
        """What `begin` wrote; None if no run has begun here.

        Raises:
            OutputTaken: it holds files that are not a run's.
        """
        names = self._names()
        if JOB not in names:
            if foreign := sorted(name for name in names if not PART.fullmatch(name) and name != UNFINISHED):
                raise OutputTaken(self.where, f"holds other files ({', '.join(foreign[:3])}); name a new folder")
            if names:
                raise OutputTaken(
                    self.where, "holds parts of a run that is not known any more; --overwrite removes them"
                )
            return None
        with self._files.open_input_stream(self._at(JOB)) as file:
            return file.read()

    def begin(self, job: bytes) -> None:
        """Remove an earlier run's parts, and write `_batch.json`."""
        for name in self._names():
            if PART.fullmatch(name):
                self._files.delete_file(self._at(name))
        unfinished = self._unfinished(JOB)
        with self._files.open_output_stream(unfinished) as file:
            file.write(job)
        self._files.move(unfinished, self._at(JOB))

    def parts(self) -> set[int]:
        """Indices of the shards whose parts are there."""
        return {int(match[1]) for name in self._names() if (match := PART.fullmatch(name))}

    def write_part(self, shard: int, table: pa.Table, form: str, run: str) -> None:
        """Write a shard's part: the whole of it or nothing, whenever this process ends.

        Args:
            form: one of FORMATS.
            run: the run's id, as in `_batch.json`.

        Raises:
            OutputTaken: another run has begun in the folder since.
        """
        name = part_name(shard, form)
        unfinished = self._unfinished(name)
        with self._files.open_output_stream(unfinished) as file:
            if form == "parquet":
                pq.write_table(table, file, compression="zstd")
            else:
                for batch in table.to_batches(1024):
                    file.write(json_lines(_rows(batch)))
        self._check_run(run)
        self._files.move(unfinished, self._at(name))

    def clean(self) -> None:
        """Remove the unfinished parts of runs that were killed."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_dir(self._at(UNFINISHED))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Create and lock the folder, against other runs on this machine. File systems without locks are not locked.

        A folder that this created and that is still empty at the end is removed.

        Raises:
            OutputTaken: another run holds it, or it cannot be a folder.
        """
        is_new = self._make()
        try:
            with self._locked():
                yield
        finally:
            if is_new and not self._names():
                self._files.delete_dir(self.path)

    def _make(self) -> bool:
        """Create the folder. Returns whether it is new."""
        try:
            [info] = self._files.get_file_info([self.path])
            if info.type is fs.FileType.File:
                raise OutputTaken(self.where, "is a file; name a folder")
            self._files.create_dir(self.path, recursive=True)
        except (pa.ArrowException, OSError) as error:
            raise OutputTaken(self.where, f"cannot be written: {getattr(error, 'strerror', None) or error}") from None
        return info.type is fs.FileType.NotFound

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if not isinstance(self._files, fs.LocalFileSystem):
            yield
            return
        folder = os.open(self.path, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # of a file system without locks
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise OutputTaken(self.where, "is being written by another run; wait for it to end") from None
            yield
        finally:
            os.close(folder)

    def _check_run(self, run: str) -> None:
        with self._files.open_input_stream(self._at(JOB)) as file:
            if json.loads(file.read())["run"] != run:
                raise OutputTaken(self.where, "belongs to a later run by now")

    def _names(self) -> set[str]:
        infos = self._files.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return {info.base_name for info in infos if info.type is not fs.FileType.NotFound}

    def _unfinished(self, name: str) -> str:
        """A new path to write `name` at before it is renamed."""
        self._files.create_dir(self._at(UNFINISHED), recursive=True)
        return self._at(f"{UNFINISHED}/{uuid.uuid4().hex}-{name}")

    def _at(self, name: str) -> str:
        return (PurePosixPath(self.path) / name).as_posix()


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows as dicts. In texts, bytes that are not UTF-8 become replacement characters."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        columns = [[_value(scalar) for scalar in column] for column in batch.columns]
        return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def _value(scalar: pa.Scalar) -> Any:
    is_text = pa.types.is_string(scalar.type) or pa.types.is_large_string(scalar.type)
    if is_text and scalar.is_valid:
        return scalar.as_buffer().to_pybytes().decode(errors="replace")
    return scalar.as_py()


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    """One JSON object a line. Values that JSON does not have become text, numbers that are not finite null."""
    return b"".join(json.dumps(_finite(row), ensure_ascii=False, default=str).encode() + b"\n" for row in rows)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
