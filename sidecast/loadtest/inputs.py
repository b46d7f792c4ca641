"""The requests of a load: which tasks, which rows. Endless, and the same for the same seed.

Built-in texts are numbered, so that none is sent twice unless asked for: repeated texts would measure the server's
activation cache. A file's rows are sent unchanged, in a random order, again and again.
"""

import itertools
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.client import Prompt, Row
from sidecast.loadtest.plan import LoadError, Plan
from sidecast.loadtest.sentences import SENTENCES

RECENT = 64
"""A repeated row is one of so many rows that its task was sent last."""
PROMPT = ("prompt",)
"""The column of whole prompts."""
TEXT_FILE = ".txt"

Fields = tuple[str, ...]
Values = tuple[str, ...]
"""One row: a value for each field."""


@dataclass(frozen=True, slots=True)
class Target:
    """A task as it is called, `sst2@canary`, and what its rows are made of."""

    ref: str
    kind: str
    fields: Fields
    version: int | None = None
    """The version that answered when the load began."""


@dataclass(frozen=True, slots=True)
class Request:
    """The tasks and rows of one request."""

    tasks: tuple[str, ...]
    rows: tuple[Row, ...]


class Inputs:
    """An endless iterator of requests."""

    def __init__(
        self,
        targets: Sequence[Target],
        plan: Plan,
        file: str | None = None,
        *,
        texts: Sequence[str] | None = None,
        skew: float = 0.0,
    ) -> None:
        """
        Args:
            file: rows to send, .txt with one on each line, or .jsonl, .csv, .tsv, .parquet with the tasks' fields.
            texts: rows to send instead of a file's, for tasks of one field.
            skew: 0 sends each of these rows once before any comes again; above 0, the n-th of them is sent as often as
                n to the power of minus this (Zipf's law).

        Raises:
            LoadError: too few tasks for one request, tasks that cannot share a row, or a file without rows.
            DataError: the file cannot be read.
        """
        self._targets = tuple(targets)
        self._plan = plan
        self._draw = random.Random(plan.seed)
        _check_tasks(targets, plan)
        forms = [PROMPT] if plan.whole_prompts else list(dict.fromkeys(target.fields for target in targets))
        self._skew = skew
        self.file_rows: dict[Fields, list[Values]] = {form: read_inputs(file, form) for form in forms} if file else {}
        """The file's rows by the fields that a task takes."""
        if texts is not None:
            self.file_rows = {form: [(text,) for text in texts] for form in forms}
        self.drawn = dict.fromkeys(forms, 0)
        """How many rows were taken by fields, repeated ones not counted."""
        self._fresh = {form: self._rows(form) for form in forms}
        self._recent: dict[tuple[str, ...], deque[Row]] = {}

    def __next__(self) -> Request:
        chosen = self._draw.sample(self._targets, self._plan.tasks_per_request)
        tasks = tuple(target.ref for target in chosen)
        form = PROMPT if self._plan.whole_prompts else chosen[0].fields
        return Request(tasks, tuple(self._row(tasks, form) for _ in range(self._plan.rows)))

    def __iter__(self) -> Iterator[Request]:
        return self

    @property
    def came_round(self) -> list[int]:
        """Sizes of the files' sets of rows that were sent more than once."""
        return sorted({len(rows) for form, rows in self.file_rows.items() if self.drawn[form] > len(rows)})

    def _row(self, tasks: tuple[str, ...], form: Fields) -> Row:
        shared = len(tasks) > 1 or self._plan.whole_prompts  # then the text alone says whether it was sent before
        recent = self._recent.setdefault(() if shared else tasks, deque(maxlen=RECENT))
        if recent and self._draw.random() < self._plan.repeat_share:
            return self._draw.choice(recent)
        self.drawn[form] += 1
        row = self._as_row(form, next(self._fresh[form]))
        recent.append(row)
        return row

    def _as_row(self, form: Fields, values: Values) -> Row:
        if self._plan.whole_prompts:
            return Prompt(values[0])
        return values[0] if len(form) == 1 else dict(zip(form, values, strict=True))

    def _rows(self, form: Fields) -> Iterator[Values]:
        rows = self.file_rows.get(form)
        if rows and self._skew:
            weights = list(itertools.accumulate(number**-self._skew for number in range(1, len(rows) + 1)))
            while True:
                yield self._draw.choices(rows, cum_weights=weights)[0]
        while rows:
            yield from self._draw.sample(rows, len(rows))
        for number in itertools.count(self._draw.randrange(1000, 2000) * 10_000):
            yield tuple(f"{number}. {self._draw.choice(SENTENCES)}" for _ in form)


def _check_tasks(targets: Sequence[Target], plan: Plan) -> None:
    if plan.tasks_per_request > len(targets):
        raise LoadError(f"--tasks-per-request {plan.tasks_per_request} needs as many tasks, there are {len(targets)}")
    forms: Mapping[Any, str] = {(t.fields if len(t.fields) > 1 else 1): t.ref for t in targets}
    if plan.tasks_per_request > 1 and not plan.whole_prompts and len(forms) > 1:
        one, other, *_ = forms.values()
        raise LoadError(
            f"{one} and {other} take different fields, but a request has one kind of row: name tasks of the same fields"
        )


def read_inputs(file: str, fields: Fields) -> list[Values]:
    """All rows of a file.

    Raises:
        LoadError: texts for a task with several fields, or no rows.
        DataError: the file cannot be read.
    """
    path = Path(file).expanduser()
    rows = list(_read_texts(path, fields) if path.suffix.lower() == TEXT_FILE else _read_columns(path, fields))
    if not rows:
        raise LoadError(f"{file} holds no rows; put one on each line")
    return rows


def _read_texts(path: Path, fields: Fields) -> Iterable[Values]:
    if len(fields) > 1:
        needs = ", ".join(fields)
        raise LoadError(f"{path} holds one text a line, and a task takes {needs}: give .jsonl with these columns")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise LoadError(f"--prompts {path} cannot be read: {why}") from None
    return [(line,) for line in lines if line.strip()]


def _read_columns(path: Path, fields: Fields) -> Iterator[Values]:
    from training.data import iter_columns
    from training.errors import DataError

    for line, row in iter_columns(path, fields):
        for name, value in row.items():
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise DataError(path, line, f"column {name!r} holds {type(value).__name__}; give a text")
        yield tuple(str(row[name]) for name in fields)
