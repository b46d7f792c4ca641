"""Answers every task for each row of a table, with one backbone pass for each distinct prompt.

Rows with images are answered some hundred images at a time, so that the features of few are in memory.

A bad row, or one that a side network fails on, gets its error in the task's `.error` column; the others are answered.
Knows the engine: no files, no Ray.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from ladder.answers import Answer
from serving.engine import Engine, EngineRow, Event, Piece, Resident
from serving.errors import OutOfMemory
from serving.offline.errors import OutOfRoom
from serving.offline.images import EncodedOrFault, TableEncoder, name_images, read_column, row_images
from serving.pipeline import Encoder
from side_registry.errors import InvalidRow
from side_registry.task import Pair, TaskSpec
from side_registry.task_kinds import KINDS
from table_files import ImageSource

Ids = tuple[int, ...]
Outcome = Answer | Exception

IMAGES_AT_ONCE = 256
"""Most images whose features are in memory: 200 MB of a grid of 256 tokens with 768 features in float32."""
TYPES: Mapping[str, pa.DataType] = {"string": pa.string(), "float32": pa.float32()}
"""By the type of an answer's column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineTask:
    """One task of a run."""

    name: str
    """What the names of its columns begin with."""
    task: str
    version: int
    columns: Mapping[str, str]
    """Field of the template, or image of the task, to column of the input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassLimits:
    """Largest size of one backbone pass."""

    rows: int = 64
    """Distinct prompts in a pass, and texts that are generated and rows with images at a time. Each beam counts."""
    tokens: int = 8192
    """Tokens with padding. A single longer prompt still runs, alone."""

    @property
    def halved(self) -> "PassLimits":
        """Passes of half the size."""
        return PassLimits(rows=max(self.rows // 2, 1), tokens=max(self.tokens // 2, 1))


@dataclass(slots=True)
class Counts:
    """How much work a table was."""

    rows: int = 0
    prompts: int = 0
    """Distinct prompts of a shard, over all tasks."""
    passes: int = 0
    """Inputs that the backbone computed."""
    images: int = 0
    """Images that the vision encoder computed."""
    failures: dict[str, int] = field(default_factory=dict)
    """Rows with an error, by `OfflineTask.name`."""
    truncated: dict[str, int] = field(default_factory=dict)
    """Rows whose text was longer than the task's `max_source_tokens`, by `OfflineTask.name`."""

    def add(self, other: "Counts") -> None:
        """Add the counts of another table."""
        self.rows += other.rows
        self.prompts += other.prompts
        self.passes += other.passes
        self.images += other.images
        for mine, others in ((self.failures, other.failures), (self.truncated, other.truncated)):
            for name, count in others.items():
                mine[name] = mine.get(name, 0) + count


def fields_of(name: str, kind: str) -> list[pa.Field]:
    """The columns that a task of that kind adds, with their full names."""
    types = {
        column.name: pa.list_(TYPES[column.dtype]) if column.is_list or column.varies else TYPES[column.dtype]
        for column in KINDS[kind].columns
    }
    types |= {"version": pa.int64(), "error": pa.string()}
    return [pa.field(f"{name}.{column}", type_) for column, type_ in types.items()]


@dataclass(frozen=True)
class TokenizedTable:
    """A table whose rows were rendered and tokenized for each task."""

    table: pa.Table
    ids: Sequence[Sequence[Ids | Exception]]
    """For each task, each row's token ids, or why it has none."""
    pairs: Sequence[Sequence[Pair | None]]
    """For each task, where each row's two texts lie among its tokens, if its side network reads them apart."""
    truncated: Sequence[int]
    """For each task, how many rows' texts are cut."""
    images: Sequence[Sequence[tuple[str, ...]]]
    """For each task, the names of each row's images, in the order of its spec's; none where `ids` has a fault."""
    files: Mapping[str, bytes]
    """The bytes of all images, by name."""

    @cached_property
    def prompts(self) -> int:
        """Distinct prompts, over all tasks."""
        return len({ids for rows in self.ids for ids in rows if not isinstance(ids, Exception)})

    def names_of(self, rows: range) -> set[str]:
        """The names of the images of some rows."""
        return {name for of_task in self.images for index in rows for name in of_task[index]}

    def spans(self) -> Iterator[range]:
        """The rows in spans of at most IMAGES_AT_ONCE images; of a table without images, one span."""
        start = 0
        held: set[str] = set()
        for index in range(self.table.num_rows):
            names = self.names_of(range(index, index + 1))
            if held and len(held | names) > IMAGES_AT_ONCE:
                yield range(start, index)
                start = index
                held = set()
            held |= names
        yield range(start, self.table.num_rows)


class TableAnswerer:
    """Answers tables with one engine. `tokenize` and `to_table` may run on any thread, `answer` on the device's.

    Args:
        residents: one for each of `tasks`.
        encoder: of the images; None where no task reads any.
        source: has the images that columns name by id; None where columns hold the images themselves.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Encoder,
        tasks: Sequence[OfflineTask],
        residents: Sequence[Resident],
        limits: PassLimits,
        encoder: TableEncoder | None = None,
        source: ImageSource | None = None,
    ) -> None:
        self._encoder = encoder
        self._source = source
        self._engine = engine
        self._tokenizer = tokenizer
        self._tasks = tasks
        self._residents = residents
        self._limits = limits

    def tokenize(self, table: pa.Table) -> TokenizedTable:
        """Render and tokenize all rows for all tasks, and read their images.

        Tasks with the same template and columns share the result.
        """
        shared: dict[object, tuple[list[Ids | Exception], int]] = {}
        columns_of_images: dict[tuple[str, str], list[str | InvalidRow]] = {}
        files: dict[str, bytes] = {}
        ids: list[list[Ids | Exception]] = []
        pairs: list[Sequence[Pair | None]] = []
        images: list[list[tuple[str, ...]]] = []
        truncated: list[int] = []
        for task, resident in zip(self._tasks, self._residents, strict=True):
            spec = resident.spec
            columns = tuple(task.columns[name] for name in spec.fields)
            key = (spec.template, spec.max_chars, spec.max_source_tokens, columns)
            if key not in shared:
                prompts = render(spec, [_values_of(table[column]) for column in columns], table.num_rows)
                shared[key] = self._encoded(prompts, spec.max_source_tokens)
            rows, cut = shared[key]
            truncated.append(cut)
            pairs.append(self._pairs(resident, [_values_of(table[column]) for column in columns], rows))
            wanted = [(name, task.columns[name]) for name in spec.images]
            for name, column in wanted:
                if (name, column) not in columns_of_images:
                    read = read_column(name, _values_of(table[column]), self._source)
                    columns_of_images[name, column] = name_images(read, files)
            names = [columns_of_images[image] for image in wanted]
            checked = [_with_names(row, [column[index] for column in names]) for index, row in enumerate(rows)]
            ids.append([row for row, _ in checked])
            images.append([row_names for _, row_names in checked])
        return TokenizedTable(table, ids, pairs, truncated, images, files)

    def _pairs(
        self, resident: Resident, columns: Sequence[Sequence[Any]], rows: Sequence[Ids | Exception]
    ) -> Sequence[Pair | None]:
        """Where the two texts of each row lie among its tokens; None for each where that does not matter."""
        pairs: list[Pair | None] = [None] * len(rows)
        if not resident.side.config.pair:
            return pairs
        known = [(index, ids) for index, ids in enumerate(rows) if not isinstance(ids, Exception)]
        names = resident.spec.fields
        texts = [
            {name: _as_text(name, values[index]) for name, values in zip(names, columns, strict=True)}
            for index, _ in known
        ]
        rendered = [resident.spec.render_pair(row) for row in texts]
        located = self._tokenizer.locate(
            [prompt for prompt, _ in rendered], [cuts for _, cuts in rendered], [ids for _, ids in known]
        )
        for (index, _), pair in zip(known, located, strict=True):
            pairs[index] = pair
        return pairs

    def answer(self, tokenized: TokenizedTable) -> list[list[Outcome]]:
        """Each task's outcome for each row. If memory runs out, all rows run again in passes of half the size.

        Raises:
            OutOfRoom: memory ran out again. That is not the rows' fault.
        """
        halved = self._limits.halved
        for limits in (self._limits, halved):
            outcomes = self._answer(tokenized, limits)
            if not any(_is_out_of_room(outcome) for rows in outcomes for outcome in rows):
                return outcomes
        raise OutOfRoom(halved.rows, halved.tokens)

    def _answer(self, tokenized: TokenizedTable, limits: PassLimits) -> list[list[Outcome]]:
        outcomes: list[list[Outcome]] = [[] for _ in self._tasks]
        encoded: Mapping[str, EncodedOrFault] = {}
        for span in tokenized.spans():
            encoded = self._encode_images(tokenized, span, encoded)
            for of_task, answered in zip(outcomes, self._answer_span(tokenized, span, encoded, limits), strict=True):
                of_task += answered
        return outcomes

    def _encode_images(
        self, tokenized: TokenizedTable, span: range, before: Mapping[str, EncodedOrFault]
    ) -> Mapping[str, EncodedOrFault]:
        """The images of a span by name; `before` are those of the span before it."""
        names = tokenized.names_of(span)
        missing = {name: data for name, data in tokenized.files.items() if name in names and name not in before}
        encoded = {name: image for name, image in before.items() if name in names}
        if not missing:
            return encoded
        assert self._encoder is not None, "a plan with images names their encoder"
        return encoded | self._encoder.encode(missing)

    def _answer_span(
        self, tokenized: TokenizedTable, span: range, encoded: Mapping[str, EncodedOrFault], limits: PassLimits
    ) -> list[list[Outcome]]:
        distinct: dict[tuple[int, Ids, tuple[str, ...], Pair | None, int], EngineRow] = {}
        rows: list[list[EngineRow | Exception]] = []
        for task, resident in enumerate(self._residents):
            rows.append([])
            for index in span:
                ids = tokenized.ids[task][index]
                names = tokenized.images[task][index]
                if isinstance(ids, Exception):
                    rows[-1].append(ids)
                    continue
                images = row_images(resident.spec.images, names, encoded) if names else ()
                if isinstance(images, Exception):
                    rows[-1].append(images)
                    continue
                pair = tokenized.pairs[task][index]
                row = EngineRow(ids, resident, images=images, pair=pair)
                own = index if row.alone else 0  # equal rows are one, unless each draws its own text
                key = (task, ids, names, pair, own)
                rows[-1].append(distinct.setdefault(key, row))
        inputs: dict[Ids, list[EngineRow]] = {}
        for (_, ids, *_), row in distinct.items():
            inputs.setdefault(ids, []).append(row)
        outcomes = answer_inputs(self._engine, list(inputs.values()), limits)
        return [[outcomes[row] if isinstance(row, EngineRow) else row for row in of_task] for of_task in rows]

    def to_table(self, tokenized: TokenizedTable, outcomes: Sequence[Sequence[Outcome]]) -> tuple[pa.Table, Counts]:
        """The table with the tasks' columns, and its counts without `passes`."""
        table = tokenized.table
        counts = Counts(rows=table.num_rows, prompts=tokenized.prompts)
        for index, (task, resident, of_task) in enumerate(zip(self._tasks, self._residents, outcomes, strict=True)):
            counts.truncated[task.name] = tokenized.truncated[index]
            counts.failures[task.name] = sum(isinstance(outcome, Exception) for outcome in of_task)
            fields = fields_of(task.name, resident.spec.kind)
            for column, values in zip(fields, _columns(resident, of_task), strict=True):
                table = table.append_column(column, pa.array(values, column.type))
        return table, counts

    def _encoded(self, prompts: Sequence[str | Exception], limit: int) -> tuple[list[Ids | Exception], int]:
        """Each prompt's token ids, and how many prompts are cut. Each distinct prompt is tokenized once."""
        texts = list(dict.fromkeys(prompt for prompt in prompts if isinstance(prompt, str)))
        encoded, cut = self._tokenizer.encode_cut(texts, limit)
        ids = dict(zip(texts, map(tuple, encoded), strict=True))
        is_cut = dict(zip(texts, cut, strict=True))
        rows = [ids[prompt] if isinstance(prompt, str) else prompt for prompt in prompts]
        return rows, sum(is_cut[prompt] for prompt in prompts if isinstance(prompt, str))


def _is_out_of_room(outcome: Outcome) -> bool:
    """Whether a pass was too large. An image that is too large for the device is its row's fault."""
    return isinstance(outcome, OutOfMemory) and outcome.what == "row"


def render(spec: TaskSpec, columns: Sequence[Sequence[Any]], rows: int) -> list[str | Exception]:
    """The rows' prompts, or why a row has none. `columns` are the values of the spec's fields; there may be none."""
    values = zip(*columns, strict=True) if columns else [()] * rows
    return [_prompt(spec, dict(zip(spec.fields, row, strict=True))) for row in values]


def _with_names(ids: Ids | Exception, names: Sequence[str | InvalidRow]) -> tuple[Ids | Exception, tuple[str, ...]]:
    """A row's tokens and the names of its images, or its first fault and no names."""
    if isinstance(ids, Exception):
        return ids, ()
    fault = next((name for name in names if isinstance(name, InvalidRow)), None)
    return (ids, tuple(map(str, names))) if fault is None else (fault, ())


def _prompt(spec: TaskSpec, values: Mapping[str, Any]) -> str | Exception:
    try:
        return spec.render({name: _as_text(name, value) for name, value in values.items()})
    except InvalidRow as error:
        return error


def _values_of(column: pa.ChunkedArray) -> list[Any]:
    """A column's values as Python's; a text that is not UTF-8 becomes its UnicodeDecodeError."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value_of(scalar) for scalar in column]


def _value_of(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error


def _as_text(name: str, value: Any) -> Any:
    """Numbers become their text, as in training. Raises InvalidRow."""
    if value is None:
        raise InvalidRow(name, "is null; give a text")
    if isinstance(value, UnicodeDecodeError):
        raise InvalidRow(name, f"is not UTF-8 ({value.reason} at byte {value.start})")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


def answer_inputs(
    engine: Engine, inputs: Sequence[Sequence[EngineRow]], limits: PassLimits
) -> dict[EngineRow, Outcome]:
    """Answer all rows: rows of one input in one pass, inputs of similar length together, longest first.

    Generated texts run on over several steps; new rows join as others end.

    Args:
        inputs: the rows of each distinct input.
    """
    lots = [lot for rows in inputs for lot in _divided(rows, limits.rows)]
    waiting: deque[Sequence[EngineRow]] = deque(sorted(lots, key=lambda rows: rows[0].tokens, reverse=True))
    outcomes: dict[EngineRow, Outcome] = {}
    generating: dict[EngineRow, int] = {}
    """Texts that are being generated, and their weights."""

    def keep(events: Sequence[tuple[EngineRow, Event]]) -> None:
        for row, event in events:
            if not isinstance(event, Piece):
                outcomes[row] = event
                generating.pop(row, None)

    while waiting or generating:
        rows = _take(waiting, limits, limits.rows - sum(generating.values()), idle=not generating)
        generating.update({row: row.weight for row in rows if row.generates})
        engine.step(rows, (), keep)
    return outcomes


def _room_of(row: EngineRow) -> int:
    """How much of `PassLimits.rows` a row takes besides its prompt: only texts and rows with images do."""
    return row.weight if row.generates or row.images else 0


def _divided(rows: Sequence[EngineRow], most: int) -> list[list[EngineRow]]:
    """One input's rows in lots, each with a pass of its own, so that they take at most the room `most`."""
    lots = [list[EngineRow]()]
    room = most
    for row in rows:
        weight = _room_of(row)
        if weight > room and lots[-1]:
            lots.append([])
            room = most
        lots[-1].append(row)
        room -= weight
    return lots


def _take(waiting: "deque[Sequence[EngineRow]]", limits: PassLimits, room: int, idle: bool) -> list[EngineRow]:
    """The rows of the next pass. If the engine would be idle, one input is taken whatever its size."""
    taken: list[EngineRow] = []
    inputs = 0
    longest = waiting[0][0].tokens if waiting else 0
    while waiting:
        weight = sum(map(_room_of, waiting[0]))
        fits = inputs < limits.rows and (inputs + 1) * longest <= limits.tokens and weight <= room
        if not (fits or (idle and not taken)):
            break
        room -= weight
        inputs += 1
        taken += waiting.popleft()
    return taken


def _columns(resident: Resident, outcomes: Sequence[Outcome]) -> list[list[Any]]:
    """Values of the columns of `fields_of`, in their order."""
    attributes = [column.attribute for column in KINDS[resident.spec.kind].columns]
    values = [
        [None if isinstance(outcome, Exception) else getattr(outcome, attribute) for outcome in outcomes]
        for attribute in attributes
    ]
    versions = [resident.version] * len(outcomes)
    errors = [
        (str(outcome) or type(outcome).__name__) if isinstance(outcome, Exception) else None for outcome in outcomes
    ]
    return [*values, versions, errors]
