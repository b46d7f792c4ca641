"""A table in, the same table with every task's answers out: one backbone pass for each distinct prompt.

A bad row, or one that a side network fails on, has its error in the task's `.error`, and its neighbours go on. Knows
the engine: no files, no Ray.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from ladder.answers import Answer
from serving.engine import Engine, EngineRow, Event, Piece, Resident
from serving.errors import OutOfMemory
from serving.offline.errors import OutOfRoom
from serving.pipeline import Encoder
from side_registry.errors import InvalidRow
from side_registry.task import TaskSpec
from side_registry.task_kinds import KINDS

Ids = tuple[int, ...]
Outcome = Answer | Exception

TYPES: Mapping[str, pa.DataType] = {"string": pa.string(), "float32": pa.float32()}
"""By the type of an answer's column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineTask:
    """One task of a run."""

    name: str
    """Of its columns."""
    task: str
    version: int
    columns: Mapping[str, str]
    """Field of the template to column of the input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassLimits:
    """Of one backbone pass."""

    rows: int = 64
    """Distinct prompts; and texts that are made at a time, each beam counted."""
    tokens: int = 8192
    """Padding counted. A longer prompt still runs, alone."""

    @property
    def halved(self) -> "PassLimits":
        return PassLimits(rows=max(self.rows // 2, 1), tokens=max(self.tokens // 2, 1))


@dataclass(slots=True)
class Counts:
    """What a table came to."""

    rows: int = 0
    prompts: int = 0
    """Distinct ones of a shard, over all tasks."""
    passes: int = 0
    """Inputs that the backbone computed."""
    failures: dict[str, int] = field(default_factory=dict)
    """Rows with an error, by a task's columns' name."""

    def add(self, other: "Counts") -> None:
        self.rows, self.prompts, self.passes = (
            self.rows + other.rows,
            self.prompts + other.prompts,
            self.passes + other.passes,
        )
        for name, count in other.failures.items():
            self.failures[name] = self.failures.get(name, 0) + count


def fields_of(name: str, kind: str) -> list[pa.Field]:
    """The columns that a task of that kind adds."""
    types = {
        column.name: pa.list_(TYPES[column.dtype]) if column.is_list else TYPES[column.dtype]
        for column in KINDS[kind].columns
    }
    types |= {"version": pa.int64(), "error": pa.string()}
    return [pa.field(f"{name}.{column}", type_) for column, type_ in types.items()]


@dataclass(frozen=True)
class Asked:
    """A table whose rows are tokens, for each task, or what is wrong with them."""

    table: pa.Table
    ids: Sequence[Sequence[Ids | Exception]]

    @cached_property
    def prompts(self) -> int:
        return len({ids for each in self.ids for ids in each if not isinstance(ids, Exception)})


class TableAnswerer:
    """The residents of a run, by its tasks, and one engine. `ask` and `told` are for any thread, `answer` for the
    device's.

    Args:
        residents: of each task.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Encoder,
        tasks: Sequence[OfflineTask],
        residents: Sequence[Resident],
        limits: PassLimits,
    ) -> None:
        self._engine, self._tokenizer, self._limits = engine, tokenizer, limits
        self._tasks, self._residents = tasks, residents

    def ask(self, table: pa.Table) -> Asked:
        """Rendered and tokenized. Tasks that render alike share that too."""
        alike: dict[object, list[Ids | Exception]] = {}
        return Asked(table, [self._ids(table, *each, alike) for each in zip(self._tasks, self._residents, strict=True)])

    def answer(self, asked: Asked) -> list[list[Outcome]]:
        """Each task's outcome for each row; all once more in passes of half the size where memory did not suffice.

        Raises:
            OutOfRoom: nor did it then. That is no fault of the rows.
        """
        halved = self._limits.halved
        for limits in (self._limits, halved):
            outcomes = self._answer(asked, limits)
            if not any(isinstance(each, OutOfMemory) for own in outcomes for each in own):
                return outcomes
        raise OutOfRoom(halved.rows, halved.tokens)

    def _answer(self, asked: Asked, limits: PassLimits) -> list[list[Outcome]]:
        rows: dict[tuple[int, Ids, int], EngineRow] = {}
        inputs: dict[Ids, list[EngineRow]] = {}
        outcomes: list[list[Outcome | EngineRow]] = []
        for task, (resident, each) in enumerate(zip(self._residents, asked.ids, strict=True)):
            outcomes.append([])
            for place, ids in enumerate(each):
                outcomes[-1].append(
                    ids if isinstance(ids, Exception) else _row(rows, inputs, resident, (task, ids, place))
                )
        found = answer_inputs(self._engine, list(inputs.values()), limits)
        return [[found[each] if isinstance(each, EngineRow) else each for each in own] for own in outcomes]

    def told(self, asked: Asked, outcomes: Sequence[Sequence[Outcome]]) -> tuple[pa.Table, Counts]:
        """The table with the tasks' columns, and what they came to, but for passes."""
        table, counts = asked.table, Counts(rows=asked.table.num_rows, prompts=asked.prompts)
        for task, resident, own in zip(self._tasks, self._residents, outcomes, strict=True):
            counts.failures[task.name] = sum(isinstance(each, Exception) for each in own)
            for added, values in zip(fields_of(task.name, resident.spec.kind), _columns(resident, own), strict=True):
                table = table.append_column(added, pa.array(values, added.type))
        return table, counts

    def _ids(
        self, table: pa.Table, task: OfflineTask, resident: Resident, alike: dict[object, list[Ids | Exception]]
    ) -> list[Ids | Exception]:
        spec = resident.spec
        columns = tuple(task.columns[name] for name in spec.fields)
        key = (spec.template, spec.max_chars, spec.max_source_tokens, columns)
        if key not in alike:
            prompts = render(spec, [_values_of(table[column]) for column in columns], table.num_rows)
            alike[key] = self._encoded(prompts, spec.max_source_tokens)
        return alike[key]

    def _encoded(self, prompts: Sequence[str | Exception], limit: int) -> list[Ids | Exception]:
        """Each distinct prompt is tokenized once."""
        texts = list(dict.fromkeys(each for each in prompts if isinstance(each, str)))
        ids = dict(zip(texts, map(tuple, self._tokenizer.encode_batch(texts, limit)), strict=True))
        return [ids[each] if isinstance(each, str) else each for each in prompts]


def render(spec: TaskSpec, columns: Sequence[Sequence[Any]], rows: int) -> list[str | Exception]:
    """The prompts, or what is wrong with a row. `columns` are the values of the spec's fields."""
    return [_prompt(spec, dict(zip(spec.fields, values, strict=True))) for values in zip(*columns, strict=True)][:rows]


def _prompt(spec: TaskSpec, values: Mapping[str, Any]) -> str | Exception:
    try:
        return spec.render({name: _as_text(name, value) for name, value in values.items()})
    except InvalidRow as error:
        return error


def _values_of(column: pa.ChunkedArray) -> list[Any]:
    """Python's; in the place of a text that is no UTF-8, what is wrong with it."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value_of(each) for each in column]


def _value_of(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error


def _as_text(name: str, value: Any) -> Any:
    """Numbers are taken as their text, as in training."""
    if value is None:
        raise InvalidRow(name, "is null; give a text")
    if isinstance(value, UnicodeDecodeError):
        raise InvalidRow(name, f"is not UTF-8 ({value.reason} at byte {value.start})")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


def _row(
    rows: dict[tuple[int, Ids, int], EngineRow],
    inputs: dict[Ids, list[EngineRow]],
    resident: Resident,
    at: tuple[int, Ids, int],
) -> EngineRow:
    """A task's rows of the same tokens are one, unless its texts are drawn anew."""
    task, ids, place = at
    row = EngineRow(ids, resident)
    key = (task, ids, place if row.alone else 0)
    if key not in rows:
        rows[key] = row
        inputs.setdefault(ids, []).append(row)
    return rows[key]


def answer_inputs(
    engine: Engine, inputs: Sequence[Sequence[EngineRow]], limits: PassLimits
) -> dict[EngineRow, Outcome]:
    """All rows, those of one input together, inputs of like length together; texts join as others end.

    Args:
        inputs: the rows of each distinct input.
    """
    divided = [own for rows in inputs for own in _divided(rows, limits.rows)]
    waiting: deque[Sequence[EngineRow]] = deque(sorted(divided, key=lambda rows: rows[0].tokens, reverse=True))
    found: dict[EngineRow, Outcome] = {}
    making: dict[EngineRow, int] = {}
    """Texts that are being made, and their weights."""

    def keep(events: Sequence[tuple[EngineRow, Event]]) -> None:
        for row, event in events:
            if not isinstance(event, Piece):
                found[row] = event
                making.pop(row, None)

    while waiting or making:
        rows = _take(waiting, limits, limits.rows - sum(making.values()), idle=not making)
        making.update({row: row.weight for row in rows if row.generates})
        engine.turn(rows, (), keep)
    return found


def _divided(rows: Sequence[EngineRow], most: int) -> list[list[EngineRow]]:
    """One input's rows, so that no more than `most` of its texts begin at once; each lot has a pass of its own."""
    lots, room = [list[EngineRow]()], most
    for row in rows:
        weight = row.weight if row.generates else 0
        if weight > room and lots[-1]:
            lots.append([])
            room = most
        lots[-1].append(row)
        room -= weight
    return lots


def _take(waiting: "deque[Sequence[EngineRow]]", limits: PassLimits, room: int, idle: bool) -> list[EngineRow]:
    """The rows of the next pass; one input goes in any case where the engine would be idle."""
    taken: list[EngineRow] = []
    inputs, longest = 0, waiting[0][0].tokens if waiting else 0
    while waiting:
        weight = sum(row.weight for row in waiting[0] if row.generates)
        fits = inputs < limits.rows and (inputs + 1) * longest <= limits.tokens and weight <= room
        if not (fits or (idle and not taken)):
            break
        room, inputs = room - weight, inputs + 1
        taken += waiting.popleft()
    return taken


def _columns(resident: Resident, outcomes: Sequence[Outcome]) -> list[list[Any]]:
    attributes = [column.attribute for column in KINDS[resident.spec.kind].columns]
    values = [
        [None if isinstance(each, Exception) else getattr(each, attribute) for each in outcomes]
        for attribute in attributes
    ]
    versions = [resident.version] * len(outcomes)
    errors = [(str(each) or type(each).__name__) if isinstance(each, Exception) else None for each in outcomes]
    return [*values, versions, errors]
