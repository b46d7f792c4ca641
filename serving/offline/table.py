"""Answers every task for each row of a table, with one backbone pass for each distinct prompt.

Rows with images are answered some hundred images at a time, so that the features of few are in memory.

A bad row, or one that a side network fails on, gets its error in the task's `.error` column; the others are answered.
Knows the engine: no files, no Ray.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from ladder.answering import WindowedText, Words
from ladder.answers import Answer
from serving.engine import Engine, EngineRow, Event, Piece, Resident
from serving.errors import OutOfMemory
from serving.offline.errors import OutOfRoom
from serving.offline.images import EncodedOrFault, TableEncoder, name_images, read_column, row_images
from serving.offline.tokenized import Ids, TokenizedTable, as_text, render, split_column, tokenize_prompts, values_of
from serving.pipeline import Encoder
from side_registry.errors import InvalidRow
from side_registry.specs.task import Pair
from side_registry.specs.task_kinds import KINDS, AnswerColumn
from table_files import ImageSource

Outcome = Answer | Exception

SPAN = pa.struct(
    {"start": pa.int64(), "end": pa.int64(), "label": pa.string(), "score": pa.float32(), "text": pa.string()}
)
TYPES: Mapping[str, pa.DataType] = {"string": pa.string(), "float32": pa.float32(), "spans": pa.list_(SPAN)}
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
        shared: dict[object, tuple[Sequence[Ids | WindowedText | Exception], int]] = {}
        columns_of_images: dict[tuple[str, str], list[str | InvalidRow]] = {}
        files: dict[str, bytes] = {}
        ids: list[list[Ids | WindowedText | Exception]] = []
        pairs: list[Sequence[Pair | None]] = []
        images: list[list[tuple[str, ...]]] = []
        truncated: list[int] = []
        for task, resident in zip(self._tasks, self._residents, strict=True):
            spec = resident.spec
            columns = tuple(task.columns[name] for name in spec.fields)
            tags_words = KINDS[spec.kind].has_spans
            key = (spec.template, spec.max_chars, spec.max_source_tokens, columns, tags_words)
            if key not in shared:
                values = [values_of(table[column]) for column in columns]
                prompts = render(spec, values, table.num_rows)
                shared[key] = (
                    split_column(self._tokenizer, spec, prompts, values[0])
                    if tags_words
                    else tokenize_prompts(self._tokenizer, prompts, spec.max_source_tokens)
                )
            rows, cut = shared[key]
            truncated.append(cut)
            pairs.append(self._pairs(resident, [values_of(table[column]) for column in columns], rows))
            wanted = [(name, task.columns[name]) for name in spec.images]
            for name, column in wanted:
                if (name, column) not in columns_of_images:
                    read = read_column(name, values_of(table[column]), self._source)
                    columns_of_images[name, column] = name_images(read, files)
            names = [columns_of_images[image] for image in wanted]
            checked = [_with_names(row, [column[index] for column in names]) for index, row in enumerate(rows)]
            ids.append([row for row, _ in checked])
            images.append([row_names for _, row_names in checked])
        return TokenizedTable(table, ids, pairs, truncated, images, files)

    def _pairs(
        self, resident: Resident, columns: Sequence[Sequence[Any]], rows: Sequence[Ids | WindowedText | Exception]
    ) -> Sequence[Pair | None]:
        """Where the two texts of each row lie among its tokens; None for each where that does not matter."""
        pairs: list[Pair | None] = [None] * len(rows)
        if not resident.side.config.reads_two_texts:
            return pairs
        known = [(index, ids) for index, ids in enumerate(rows) if isinstance(ids, tuple)]
        names = resident.spec.fields
        texts = [
            {name: as_text(name, values[index]) for name, values in zip(names, columns, strict=True)}
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
        distinct: dict[tuple[int, Ids, tuple[str, ...], Pair | None, int, Words | None], EngineRow] = {}
        rows: list[list[EngineRow | _TextRows | Exception]] = []
        for task, resident in enumerate(self._residents):
            rows.append([])
            for index in span:
                ids = tokenized.ids[task][index]
                names = tokenized.images[task][index]
                if isinstance(ids, Exception):
                    rows[-1].append(ids)
                    continue
                if isinstance(ids, WindowedText):
                    windows = [
                        distinct.setdefault(
                            (task, window.ids, (), None, 0, window.words),
                            EngineRow(window.ids, resident, words=window.words),
                        )
                        for window in ids.windows
                    ]
                    rows[-1].append(_TextRows(ids, windows))
                    continue
                images = row_images(resident.spec.images, names, encoded) if names else ()
                if isinstance(images, Exception):
                    rows[-1].append(images)
                    continue
                pair = tokenized.pairs[task][index]
                row = EngineRow(ids, resident, images=images, pair=pair)
                own = index if row.alone else 0  # equal rows are one, unless each draws its own text
                rows[-1].append(distinct.setdefault((task, ids, names, pair, own, None), row))
        inputs: dict[Ids, list[EngineRow]] = {}
        for row in distinct.values():
            inputs.setdefault(row.ids, []).append(row)
        outcomes = answer_inputs(self._engine, list(inputs.values()), limits)
        return [[_outcome(row, outcomes) for row in of_task] for of_task in rows]

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


@dataclass(frozen=True, slots=True)
class _TextRows:
    """A text whose words are tagged, and the rows of its windows."""

    text: WindowedText
    windows: Sequence[EngineRow]


def _outcome(row: EngineRow | _TextRows | Exception, outcomes: Mapping[EngineRow, Outcome]) -> Outcome:
    if isinstance(row, _TextRows):
        return row.text.join([outcomes[window] for window in row.windows])
    return outcomes[row] if isinstance(row, EngineRow) else row


def _is_out_of_room(outcome: Outcome) -> bool:
    """Whether a pass was too large. An image that is too large for the device is its row's fault."""
    return isinstance(outcome, OutOfMemory) and outcome.what == "row"


def _with_names(
    ids: Ids | WindowedText | Exception, names: Sequence[str | InvalidRow]
) -> tuple[Ids | WindowedText | Exception, tuple[str, ...]]:
    """A row's tokens and the names of its images, or its first fault and no names."""
    if isinstance(ids, Exception):
        return ids, ()
    fault = next((name for name in names if isinstance(name, InvalidRow)), None)
    return (ids, tuple(map(str, names))) if fault is None else (fault, ())


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


def _value(column: AnswerColumn, outcome: Answer) -> Any:
    value = getattr(outcome, column.attribute)
    return [asdict(span) for span in value] if column.dtype == "spans" else value


def _columns(resident: Resident, outcomes: Sequence[Outcome]) -> list[list[Any]]:
    """Values of the columns of `fields_of`, in their order."""
    values = [
        [None if isinstance(outcome, Exception) else _value(column, outcome) for outcome in outcomes]
        for column in KINDS[resident.spec.kind].columns
    ]
    versions = [resident.version] * len(outcomes)
    errors = [
        (str(outcome) or type(outcome).__name__) if isinstance(outcome, Exception) else None for outcome in outcomes
    ]
    return [*values, versions, errors]
