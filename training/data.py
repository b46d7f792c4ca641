"""Labelled examples of a task, read from a file and checked against the task's spec, row by row.

A file's columns are the template's fields and the spec's target; others are ignored and equal rows are kept. Fields are
text; numbers are taken as their text, and nothing else is (null, booleans, lists). Targets:

- classification: a label's text. Or its index in the spec's labels, from 0, if the file has integers in all rows;
  where a label is itself an integer ("0", "1"), integers are always label texts.
- regression: a finite number (in text too), inside the spec's low and high.
- text: any text that is not empty.
- embedding: a text that means the same; it may hold what the template's field may hold.

Knows no formats (table_files), tokens or tensors.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from side_registry.errors import InvalidRow
from side_registry.task import TaskSpec
from table_files import Row, TableFileError, format_of, read_rows
from training.errors import DataError

INTEGER = re.compile(r"[+-]?[0-9]{1,18}")

JSON_NAMES = {type(None): "null", bool: "a boolean", dict: "an object", list: "an array", bytes: "bytes"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row with the answer that it should get."""

    fields: dict[str, str]
    """What the spec's `render` takes."""
    target: str | float
    """A label's text, a value, a text, or an embedding's other text, by the task's kind."""
    line: int
    """Line where the row starts in its file, from 1 (Parquet: the row's number)."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A whole file of examples."""

    examples: list[Example]
    sha256: str
    """Of the file."""


def read_labelled(path: str | Path, spec: TaskSpec) -> Labelled:
    """As `read_examples`, with the file's digest. Raises as it does."""
    return Labelled(read_examples(path, spec), data_sha256(path))


def read_examples(path: str | Path, spec: TaskSpec) -> list[Example]:
    """All examples of a .jsonl, .csv, .tsv or .parquet file, in its order.

    Raises:
        DataError: the file cannot be read, a row does not fit the spec, or there is no row.
    """
    examples = list(iter_examples(path, spec))
    if not examples:
        raise DataError(path, None, "holds no examples")
    return examples


def iter_examples(path: str | Path, spec: TaskSpec) -> Iterator[Example]:
    """As `read_examples`, one at a time; an empty file is no error."""
    read_target = READERS[spec.kind](spec)
    for line, row in iter_columns(path, (*spec.fields, spec.target)):
        try:
            example = Example(fields=_read_fields(spec, row), target=read_target(row[spec.target]), line=line)
        except (_Misfit, InvalidRow) as error:
            raise DataError(path, line, str(error)) from None
        yield example


def iter_columns(path: str | Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a file: the line where each starts, and its values of `columns` as the file has them.

    Raises:
        DataError: unreadable, another suffix, not UTF-8, bad JSON, CSV or Parquet, a column missing.
    """
    path = Path(path).expanduser()
    try:
        form = format_of(path)
        with path.open("rb") as file:
            yield from read_rows(file, form, columns)
    except TableFileError as error:
        raise DataError(path, error.line, error.why) from None
    except OSError as error:
        raise DataError(path, None, error.strerror or str(error)) from error


def as_fields(spec: TaskSpec, text: str) -> dict[str, str]:
    """A text as the row of a template with one field."""
    [field] = spec.fields
    return {field: text}


def data_sha256(path: str | Path) -> str:
    """The file's SHA-256 in hexadecimal: a run's provenance names its data by it.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(path, None, error.strerror or str(error)) from error


class _Misfit(Exception):
    """A value does not fit the spec; its reader's caller adds file and line."""


def _read_fields(spec: TaskSpec, row: dict[str, Any]) -> dict[str, str]:
    fields = {name: _as_text(f"field {name!r}", row[name]) for name in spec.fields}
    spec.render(fields)  # training accepts what serving accepts
    return fields


def _as_text(what: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Misfit(f"{what} is {JSON_NAMES.get(type(value), type(value).__name__)}; give a text")
    if isinstance(value, float) and not math.isfinite(value):
        raise _Misfit(f"{what} is {value}; give a text")
    return str(value)


class _LabelReader:
    """Label texts or indices; the first row decides which of the two the file has."""

    def __init__(self, spec: TaskSpec) -> None:
        self._labels = spec.labels
        self._what = f"target {spec.target!r}"
        self._may_be_indices = not any(INTEGER.fullmatch(label) for label in spec.labels)
        self._are_indices: bool | None = None

    def __call__(self, value: Any) -> str:
        text = _as_text(self._what, value)
        is_index = self._may_be_indices and INTEGER.fullmatch(text) is not None
        if self._are_indices is None:
            self._are_indices = is_index
        label = self._at(int(text)) if is_index else text
        if label not in self._labels:
            raise _Misfit(f"{self._what} is {_shown(text)}, not one of {', '.join(self._labels)}")
        if is_index != self._are_indices:
            first = "a label's position" if self._are_indices else "a label's text"
            raise _Misfit(f"{self._what} is {_shown(text)}, but {first} in the rows before; write all as text")
        return label

    def _at(self, index: int) -> str | None:
        return self._labels[index] if 0 <= index < len(self._labels) else None


class _ValueReader:
    """Numbers inside the spec's range."""

    def __init__(self, spec: TaskSpec) -> None:
        self._low = -math.inf if spec.low is None else spec.low
        self._high = math.inf if spec.high is None else spec.high
        self._what = f"target {spec.target!r}"

    def __call__(self, value: Any) -> float:
        number = self._number(value)
        if not math.isfinite(number):
            raise _Misfit(f"{self._what} is {number}; give a finite number")
        if not self._low <= number <= self._high:
            raise _Misfit(f"{self._what} is {number:g}, outside {self._low:g} to {self._high:g}")
        return number

    def _number(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise _Misfit(f"{self._what} is {JSON_NAMES.get(type(value), type(value).__name__)}; give a number")
        try:
            if isinstance(value, str) and "_" in value:  # Python reads 1_000 as a number
                raise ValueError
            return float(value)
        except (ValueError, OverflowError):
            raise _Misfit(f"{self._what} is {_shown(str(value))}; give a number") from None


class _TextReader:
    """Texts that a tokenizer can take."""

    def __init__(self, spec: TaskSpec) -> None:
        self._what = f"target {spec.target!r}"

    def __call__(self, value: Any) -> str:
        text = _as_text(self._what, value)
        if not text.strip():
            raise _Misfit(f"{self._what} is empty; give it some text")
        if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text):
            raise _Misfit(f"{self._what} holds a NUL character or half a surrogate pair; remove it")
        return text


class _PositiveReader:
    """Texts that a server would embed: an embedding's target is another of its inputs."""

    def __init__(self, spec: TaskSpec) -> None:
        self._spec = spec
        self._what = f"target {spec.target!r}"

    def __call__(self, value: Any) -> str:
        text = _as_text(self._what, value)
        try:
            self._spec.render(as_fields(self._spec, text))
        except InvalidRow as error:
            raise _Misfit(f"{self._what} {error.why}") from None
        return text


READERS: Mapping[str, Callable[[TaskSpec], Callable[[Any], str | float]]] = {
    "classification": _LabelReader,
    "regression": _ValueReader,
    "text": _TextReader,
    "embedding": _PositiveReader,
}
"""By kind of task: makes the function that checks one value of the target's column."""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
