"""The requests of a load: which tasks, which rows. Endless, and the same for the same seed.

Built-in texts are numbered, so that none is sent twice unless asked for: repeated texts would measure the server's
activation cache. A file's rows are sent unchanged, in a random order, again and again.
"""

import itertools
import random
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.client import Prompt, Row
from serving.client.images import read_image_file
from sidecast.loadtest.plan import LoadError, Plan
from sidecast.loadtest.sentences import SENTENCES

RECENT = 64
"""A repeated row is one of so many rows that its task was sent last."""
PROMPT = ("prompt",)
"""The column of whole prompts."""
TEXT_FILE = ".txt"

Fields = tuple[str, ...]
Values = tuple[str | bytes, ...]
"""One row: a value for each field; of an image, the bytes of its file."""


@dataclass(frozen=True, slots=True)
class Target:
    """A task as it is called, `sst2@canary`, and what its rows are made of."""

    ref: str
    kind: str
    fields: Fields
    """Texts, then images."""
    version: int | None = None
    """The version that answered when the load began."""
    images: Fields = ()
    """Which of the fields are images."""


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
            file: rows to send, .txt with one on each line, or .jsonl, .csv, .tsv, .parquet with the tasks' fields. An
                image is its file's bytes (.parquet), or the path of its file from the folder of `file`.
            texts: rows to send instead of a file's, for tasks of one field.
            skew: 0 sends each of these rows once before any comes again; above 0, the n-th of them is sent as often as
                n to the power of minus this (Zipf's law).

        Raises:
            LoadError: too few tasks for one request, tasks that cannot share a row, a file without rows, a task that
                reads images without a file, or an image that cannot be read.
            DataError: the file cannot be read.
        """
        self._targets = tuple(targets)
        self._plan = plan
        self._draw = random.Random(plan.seed)
        _check_tasks(targets, plan)
        self._images = frozenset(name for target in targets for name in target.images)
        if self._images and (file is None or plan.whole_prompts):
            _refuse_images(targets)
        forms = [PROMPT] if plan.whole_prompts else list(dict.fromkeys(target.fields for target in targets))
        self._skew = skew
        self.file_rows: dict[Fields, list[Values]] = (
            {form: read_inputs(file, form, self._images) for form in forms} if file else {}
        )
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
        first = values[0]
        if isinstance(first, str) and len(form) == 1:
            return Prompt(first) if self._plan.whole_prompts else first
        return dict(zip(form, values, strict=True))

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
    forms: Mapping[Any, str] = {(t.fields if len(t.fields) > 1 or t.images else 1): t.ref for t in targets}
    if plan.tasks_per_request > 1 and not plan.whole_prompts and len(forms) > 1:
        one, other, *_ = forms.values()
        raise LoadError(
            f"{one} and {other} take different fields, but a request has one kind of row: name tasks of the same fields"
        )


def _refuse_images(targets: Sequence[Target]) -> None:
    target = next(target for target in targets if target.images)
    columns = ", ".join(target.fields)
    raise LoadError(
        f"{target.ref} reads images ({', '.join(target.images)}): give its rows with --prompts FILE and without "
        f"--whole-prompts, a .parquet, .jsonl, .csv or .tsv file with the columns {columns}"
    )


def read_inputs(file: str, fields: Fields, images: Collection[str] = ()) -> list[Values]:
    """All rows of a file. `images` are the fields that are images.

    Raises:
        LoadError: texts for a task with several fields or with images, no rows, or an image that cannot be read.
        DataError: the file cannot be read.
    """
    path = Path(file).expanduser()
    rows = list(
        _read_texts(path, fields, images) if path.suffix.lower() == TEXT_FILE else _read_columns(path, fields, images)
    )
    if not rows:
        raise LoadError(f"{file} holds no rows; put one on each line")
    return rows


def _read_texts(path: Path, fields: Fields, images: Collection[str]) -> Iterable[Values]:
    if len(fields) > 1 or any(name in images for name in fields):
        needs = ", ".join(fields)
        raise LoadError(f"{path} holds one text a line, and a task takes {needs}: give .jsonl with these columns")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise LoadError(f"--prompts {path} cannot be read: {why}") from None
    return [(line,) for line in lines if line.strip()]


def _read_columns(path: Path, fields: Fields, images: Collection[str]) -> Iterator[Values]:
    from training.data import iter_columns
    from training.errors import DataError

    files: dict[str, bytes] = {}  # rows share images

    def read(line: int, name: str, value: Any) -> str | bytes:
        if name in images and isinstance(value, bytes):
            return value
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            needs = "the bytes or the path of an image" if name in images else "a text"
            raise DataError(path, line, f"column {name!r} holds {type(value).__name__}; give {needs}")
        text = str(value)
        if name not in images:
            return text
        if text not in files:
            files[text] = _read_image(path.parent / text)
        return files[text]

    for line, row in iter_columns(path, fields):
        yield tuple(read(line, name, row[name]) for name in fields)


def _read_image(path: Path) -> bytes:
    try:
        return read_image_file(path)
    except (OSError, ValueError) as error:
        raise LoadError(f"the image {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
