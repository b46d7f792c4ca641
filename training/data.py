"""Labelled examples of a task, read from a file and checked against the task's spec, row by row.

A file's columns are the template's fields, the spec's images and its target; others are ignored and equal rows are
kept. Fields are text; numbers are taken as their text, and nothing else is (null, booleans, lists). An image is named
by its id, in a column named as the field (`image`) or with `_id` after it (`image_id`). Targets:

- classification: a label's text. Integers are label texts too ("0", "1"), unless the spec has `label_index`: then they
  are positions in its labels, from 0, in all rows of a file or in none. A Parquet file's column of class labels, as
  `datasets` writes them, has integers and their names in the file's metadata: there the names count. With the spec's
  `open_labels`, any other text too.
- regression: a finite number (in text too), inside the spec's low and high.
- text: any text that is not empty, or a list of them (in .jsonl and Parquet): references, each of which is right.
- embedding: a text that means the same; it may hold what the template's field may hold.
- multilabel: a list of labels, which may be empty. In .csv and .tsv it is a JSON list (`["a", "b"]`), one label's text,
  or nothing. Integers are positions with `label_index`, or with the names of a Parquet file's column of class labels.
  Without either, a list of as many 0s and 1s as there are labels has a 1 for each label that is right, as `datasets`
  writes them; so has a list of booleans or of 0.0s and 1.0s in any file.
- ranking: a number from 0 (not relevant) to 1 (relevant). Each row is a query with one of its passages.
- token_classification: spans of the text, each with a label. Rows may have tokens and their tags instead of the field
  and the target; see `training.tagging.entities`.

Knows no formats (table_files), tokens or tensors.
"""

import hashlib
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from side_registry.errors import InvalidRow
from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS
from side_registry.specs.task_rules import INTEGER
from table_files import ID_SUFFIX, Format, Row, TableFileError, class_names, format_of, read_rows
from training.errors import JSON_NAMES, DataError, Misfit, RecipeError, shown
from training.label_lists import POSITIONS, LabelsReader
from training.tagging import TAGS, TOKENS, SpanReader, check_spans, is_conll, join_tokens, read_conll

Renames = Mapping[str, str]
"""The column that a field, the target or `id` is read from, by its name, where they differ."""
NO_RENAMES: Renames = {}
ID = "id"
"""The column that identifies a row in predictions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row with the answer that it should get."""

    fields: dict[str, str]
    """What the spec's `render` takes, and the ids of its images by their fields."""
    target: Any
    """A label's text, a value, a text (a tuple where the row gives several), an embedding's other text, a frozenset of
    labels, or a list of spans, by the task's kind; None where it is not known."""
    line: int
    """Line where the row starts in its file, from 1 (Parquet: the row's number)."""
    id: str | int | float | None = field(default=None, compare=False)
    """Value of the file's column `id`, where it has one."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Examples of one file."""

    examples: list[Example]
    sha256: str
    """Of the whole file."""


def read_labelled(path: str | Path, spec: TaskSpec, renames: Renames = NO_RENAMES) -> Labelled:
    """As `read_examples`, with the file's digest. Raises as it does."""
    return Labelled(read_examples(path, spec, renames), data_sha256(path))


def split(whole: Labelled, share: float, seed: int, by: Sequence[str] = ()) -> tuple[Labelled, Labelled]:
    """Training and validation examples of one file, each in its order. Rows with equal fields stay together, and each
    target has about its share of both.

    Args:
        share: of the rows that validate, about, between 0 and 1; one distinct row at least.
        seed: the same seed splits alike.
        by: the fields that count; none: all. A task's images keep all rows of an image in one part.

    Raises:
        RecipeError: fewer than two distinct rows.
    """
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, example in enumerate(whole.examples):
        values = [example.fields[name] for name in by] if by else example.fields.values()
        groups[tuple(values)].append(index)
    if len(groups) < 2:
        raise RecipeError("validation_share", share, "left out for a file with fewer than two different rows")
    distinct = _interleaved(list(groups.values()), whole.examples, random.Random(f"{seed}:validation"))
    held_out = set(distinct[0])
    for indices in distinct[1:-1]:
        if len(held_out) + len(indices) <= share * len(whole.examples):
            held_out.update(indices)
    training = [example for index, example in enumerate(whole.examples) if index not in held_out]
    validation = [example for index, example in enumerate(whole.examples) if index in held_out]
    return Labelled(training, whole.sha256), Labelled(validation, whole.sha256)


def share_reading(share: float) -> dict[str, Any]:
    """How a run's settings say that `split` drew its validation rows. A run that drew them otherwise does not go on."""
    return {"validation_share": share, "validation_drawn": "evenly by target"}


def _interleaved(groups: list[list[int]], examples: Sequence[Example], order: random.Random) -> list[list[int]]:
    """Groups of rows in random order, in which any beginning has about as much of each target as the whole.

    Systematic sampling: the groups of a target are evenly spread from 0 to 1, with a random start.
    """
    order.shuffle(groups)
    by_target: dict[str, list[list[int]]] = defaultdict(list)
    for group in groups:
        by_target[repr(examples[group[0]].target)].append(group)
    placed: list[tuple[float, list[int]]] = []
    for alike in by_target.values():
        start = order.random()
        placed += [((number + start) / len(alike), group) for number, group in enumerate(alike)]
    return [group for _, group in sorted(placed, key=lambda each: each[0])]


def kept_together(spec: TaskSpec) -> tuple[str, ...]:
    """The fields by which `split` keeps rows together: images, or the query of a ranking; none: all fields."""
    return spec.fields[:1] if KINDS[spec.kind].ranks else spec.images


def known_names(spec: TaskSpec) -> tuple[str, ...]:
    """What may be renamed: the task's fields and images, its target, and `id`."""
    tagged = (TOKENS, TAGS) if KINDS[spec.kind].has_spans else ()
    return (*spec.inputs, spec.target, *tagged, ID)


def check_renames(specs: Sequence[TaskSpec], renames: Renames) -> None:
    """Raises DataError: a rename of something that none of the tasks reads."""
    known = dict.fromkeys(name for spec in specs for name in known_names(spec))
    for name in renames:
        if name not in known:
            tasks = ", ".join(spec.name for spec in specs)
            raise DataError("--rename", None, f"{tasks} has no field {name!r}; there are {', '.join(known)}")


def read_examples(path: str | Path, spec: TaskSpec, renames: Renames = NO_RENAMES) -> list[Example]:
    """All examples of a .jsonl, .csv, .tsv, .parquet or (token classification) .conll file, in its order.

    Args:
        renames: the column that a field, or the target, is read from, where its name is another.

    Raises:
        DataError: the file cannot be read, a row does not fit the spec, or there is no row.
    """
    return _some(path, iter_examples(path, spec, renames))


def read_to_evaluate(path: str | Path, spec: TaskSpec, renames: Renames = NO_RENAMES) -> list[Example]:
    """All rows of a file, with targets if the first row has one, and else without: then each target is None.

    Raises:
        DataError: as `read_examples`, or only some rows have a target.
    """
    target = renames.get(spec.target, spec.target)
    renames = _with_images(path, spec, renames)
    if _has_tags(path, spec, renames):
        return _some(path, iter_examples(path, spec, renames, with_ids=True))
    first = next(iter_columns(path, _columns(spec, renames), (target,)), None)
    if first is not None and target in first[1]:
        return _some(path, iter_examples(path, spec, renames, with_ids=True))
    return _some(path, iter_unlabelled(path, spec, renames))


def _some(path: str | Path, examples: Iterable[Example]) -> list[Example]:
    read = list(examples)
    if not read:
        raise DataError(path, None, "holds no examples")
    return read


def iter_examples(
    path: str | Path, spec: TaskSpec, renames: Renames = NO_RENAMES, *, with_ids: bool = False
) -> Iterator[Example]:
    """As `read_examples`, one at a time; an empty file is no error."""
    read_target = READERS[spec.kind](spec)
    target = renames.get(spec.target, spec.target)
    renames = _with_images(path, spec, renames)
    kind = KINDS[spec.kind]
    names = _class_names(path, target) if kind.has_labels and not kind.has_spans else []
    ids = _id_column(renames, with_ids)
    rows = (
        _rows_of_tags(path, spec, renames, ids)
        if _has_tags(path, spec, renames)
        else iter_columns(path, _columns(spec, renames, target), ids)
    )
    for line, row in rows:
        value = _named(row[target], names)
        try:
            fields = _read_fields(spec, row, renames)
            checked = read_target(value)
            if kind.has_spans:
                checked = check_spans(fields[spec.fields[0]], checked)
            example = Example(fields=fields, target=checked, line=line, id=_id(row, renames))
        except (Misfit, InvalidRow) as error:
            raise DataError(path, line, str(error)) from None
        yield example


def _has_tags(path: str | Path, spec: TaskSpec, renames: Renames) -> bool:
    """Whether the file's rows have a tag for each token, instead of spans."""
    if not KINDS[spec.kind].has_spans:
        return False
    if is_conll(path):
        return True
    tags = renames.get(TAGS, TAGS)
    target = renames.get(spec.target, spec.target)
    first = next(iter_columns(path, (), (tags, target)), None)
    return first is not None and tags in first[1] and target not in first[1]


def _rows_of_tags(path: str | Path, spec: TaskSpec, renames: Renames, ids: Sequence[str]) -> Iterator[Row]:
    """The rows of a file of tokens and tags, as rows of a text and its spans."""
    tokens, tags = renames.get(TOKENS, TOKENS), renames.get(TAGS, TAGS)
    [field] = spec.fields
    names: Sequence[str] = ()
    if is_conll(path):
        rows = ((line, {tokens: words, tags: theirs}) for line, words, theirs in read_conll(path))
    else:
        names = _class_names(path, tags)
        rows = iter_columns(path, (tokens, tags), ids)
    for line, row in rows:
        try:
            text, spans = join_tokens(row[tokens], row[tags], spec.labels, names)
        except Misfit as error:
            raise DataError(path, line, str(error)) from None
        yield line, {**row, renames.get(field, field): text, renames.get(spec.target, spec.target): spans}


def iter_unlabelled(path: str | Path, spec: TaskSpec, renames: Renames = NO_RENAMES) -> Iterator[Example]:
    """Examples with None as target; a row that has one is an error."""
    target = renames.get(spec.target, spec.target)
    renames = _with_images(path, spec, renames)
    for line, row in iter_columns(path, _columns(spec, renames), (target, *_id_column(renames, True))):
        if target in row:
            raise DataError(
                path, line, f"has a target, {target!r}, and the rows before have none; give it to all or none"
            )
        try:
            example = Example(fields=_read_fields(spec, row, renames), target=None, line=line, id=_id(row, renames))
        except (Misfit, InvalidRow) as error:
            raise DataError(path, line, str(error)) from None
        yield example


def read_unlabelled(path: str | Path, spec: TaskSpec, renames: Renames = NO_RENAMES) -> Labelled:
    """The rows of a file without their targets, if it has some; of a .txt file, each line that has text.

    Equal rows are taken once.

    Raises:
        DataError: the file cannot be read, a row does not fit the spec, there is no row, or a .txt file is given for a
            task that reads more than one text.
    """
    rows: dict[tuple[str, ...], Example] = {}
    for line, row in _text_lines(path, spec, renames):
        try:
            fields = _read_fields(spec, row, renames)
        except (Misfit, InvalidRow) as error:
            raise DataError(path, line, str(error)) from None
        rows.setdefault(tuple(fields.values()), Example(fields=fields, target=None, line=line))
    return Labelled(_some(path, rows.values()), data_sha256(path))


def _text_lines(path: str | Path, spec: TaskSpec, renames: Renames) -> Iterator[Row]:
    if Path(path).suffix.lower() != ".txt":
        yield from iter_columns(path, _columns(spec, renames))
        return
    if len(spec.inputs) > 1:
        raise DataError(path, None, f"a line is one text, and task {spec.name} reads {', '.join(spec.inputs)}")
    [column] = _columns(spec, renames)
    try:
        with Path(path).expanduser().open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, {column: line.strip()}
    except OSError as error:
        raise DataError(path, None, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise DataError(path, None, f"not UTF-8 at byte {error.start}") from None


def iter_columns(path: str | Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a file: the line where each starts, and its values of `columns` as the file has them.

    Args:
        optional: columns whose values come too where a row has them.

    Raises:
        DataError: unreadable, another suffix, not UTF-8, bad JSON, CSV or Parquet, a column missing.
    """
    with _opened(path) as (file, form):
        yield from read_rows(file, form, columns, optional)


def as_fields(spec: TaskSpec, text: str) -> dict[str, str]:
    """A text as the row of a template with one field."""
    [field] = spec.fields
    return {field: text}


def references(target: Any) -> tuple[Any, ...]:
    """All answers that are right for a row: those of its target if that is a tuple, else the target alone."""
    return target if isinstance(target, tuple) else (target,)


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


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[BinaryIO, Format]]:
    """A file of rows. Raises DataError for what is found wrong with it within."""
    path = Path(path).expanduser()
    try:
        form = format_of(path)
        with path.open("rb") as file:
            yield file, form
    except TableFileError as error:
        raise DataError(path, error.line, error.why) from None
    except OSError as error:
        raise DataError(path, None, error.strerror or str(error)) from error


def _columns(spec: TaskSpec, renames: Renames, *more: str) -> tuple[str, ...]:
    """The columns of the spec's fields and images, and `more`, each once."""
    return tuple(dict.fromkeys([*(renames.get(name, name) for name in spec.inputs), *more]))


def _with_images(path: str | Path, spec: TaskSpec, renames: Renames) -> Renames:
    """The renames, and those of images whose ids are in a column named as the field with `_id` after it."""
    unnamed = [name for name in spec.images if name not in renames]
    if not unnamed:
        return renames
    first = next(iter_columns(path, (), [*unnamed, *(name + ID_SUFFIX for name in unnamed)]), None)
    if first is None:
        return renames
    found = dict(renames)
    for name in unnamed:
        if isinstance(first[1].get(name), str | int | float):
            continue
        if name + ID_SUFFIX not in first[1]:
            what = "holds no ids" if name in first[1] else "is missing"
            why = f"column {name!r} {what}; give the ids of images in a column {name} or {name}{ID_SUFFIX}, or --rename"
            raise DataError(path, first[0], why)
        found[name] = name + ID_SUFFIX
    return found


def _class_names(path: str | Path, column: str) -> Sequence[str]:
    with _opened(path) as (file, form):
        return class_names(file, form).get(column, ())


def _named(value: Any, names: Sequence[str]) -> Any:
    """A target, or each of a list of them, with the name of its class in place of its position in `names`."""
    if names and isinstance(value, list):
        return [_named(item, names) for item in value]
    return names[value] if names and type(value) is int and 0 <= value < len(names) else value


def _id_column(renames: Renames, is_wanted: bool) -> tuple[str, ...]:
    return (renames.get(ID, ID),) if is_wanted else ()


def _id(row: dict[str, Any], renames: Renames) -> str | int | float | None:
    value = row.get(renames.get(ID, ID))
    return value if isinstance(value, str | int | float) else None


def _read_fields(spec: TaskSpec, row: dict[str, Any], renames: Renames) -> dict[str, str]:
    fields = {name: _as_text(f"field {name!r}", row[renames.get(name, name)]) for name in spec.inputs}
    spec.render(fields)  # training accepts what serving accepts
    for name in spec.images:
        if not fields[name].strip():
            raise Misfit(f"field {name!r} is empty; give the id of an image")
    return fields


def _as_text(what: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Misfit(f"{what} is {JSON_NAMES.get(type(value), type(value).__name__)}; give a text")
    if isinstance(value, float) and not math.isfinite(value):
        raise Misfit(f"{what} is {value}; give a text")
    return str(value)


class _LabelReader:
    """Label texts, or indices where the spec allows them; the first row decides which of the two the file has."""

    def __init__(self, spec: TaskSpec) -> None:
        self._labels = spec.labels
        self._what = f"target {spec.target!r}"
        self._may_be_indices = spec.label_index
        self._is_open = spec.open_labels
        self._are_indices: bool | None = None

    def __call__(self, value: Any) -> str:
        text = _as_text(self._what, value)
        if self._is_open:
            return text
        is_index = self._may_be_indices and INTEGER.fullmatch(text) is not None
        if self._are_indices is None:
            self._are_indices = is_index
        label = self._at(int(text)) if is_index else text
        if label not in self._labels:
            hint = "" if self._may_be_indices or not INTEGER.fullmatch(text) else f"; {POSITIONS}"
            raise Misfit(f"{self._what} is {shown(text)}, not one of {', '.join(self._labels)}{hint}")
        if is_index != self._are_indices:
            first = "a label's position" if self._are_indices else "a label's text"
            raise Misfit(f"{self._what} is {shown(text)}, but {first} in the rows before; write all as text")
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
            raise Misfit(f"{self._what} is {number}; give a finite number")
        if not self._low <= number <= self._high:
            raise Misfit(f"{self._what} is {number:g}, outside {self._low:g} to {self._high:g}")
        return number

    def _number(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise Misfit(f"{self._what} is {JSON_NAMES.get(type(value), type(value).__name__)}; give a number")
        try:
            if isinstance(value, str) and "_" in value:  # Python reads 1_000 as a number
                raise ValueError
            return float(value)
        except (ValueError, OverflowError):
            raise Misfit(f"{self._what} is {shown(str(value))}; give a number") from None


class _RelevanceReader(_ValueReader):
    """Numbers from 0 to 1."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self._low = 0.0
        self._high = 1.0


class _TextReader:
    """Texts that a tokenizer can take, or lists of them."""

    def __init__(self, spec: TaskSpec) -> None:
        self._what = f"target {spec.target!r}"

    def __call__(self, value: Any) -> str | tuple[str, ...]:
        if not isinstance(value, list):
            return self._text(self._what, value)
        if not value:
            raise Misfit(f"{self._what} is an empty array; give it one text or more")
        return tuple(self._text(f"{self._what}, text {number},", each) for number, each in enumerate(value, 1))

    def _text(self, what: str, value: Any) -> str:
        text = _as_text(what, value)
        if not text.strip():
            raise Misfit(f"{what} is empty; give it some text")
        if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text):
            raise Misfit(f"{what} holds a NUL character or half a surrogate pair; remove it")
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
            raise Misfit(f"{self._what} {error.why}") from None
        return text


READERS: Mapping[str, Callable[[TaskSpec], Callable[[Any], Any]]] = {
    "classification": _LabelReader,
    "regression": _ValueReader,
    "text": _TextReader,
    "embedding": _PositiveReader,
    "multilabel": LabelsReader,
    "token_classification": SpanReader,
    "ranking": _RelevanceReader,
}
"""By kind of task: makes the function that checks one value of the target's column."""
