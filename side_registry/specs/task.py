"""What a task is: its spec (template, kind, labels, limits), how it is named, and how a row becomes a prompt.

Knows text and names only: no versions, no tokens, no stores.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from side_registry.documents import Document
from side_registry.errors import InvalidName, InvalidRow, InvalidSpec
from side_registry.specs.decoding_spec import GenerationSpec
from side_registry.specs.task_kinds import KINDS, Kind
from side_registry.specs.task_rules import MAX_DIMENSIONS, check_rules, template_fields, text_fault, toml_faults

PRODUCTION = "production"
"""The alias of a reference that names none."""

MAX_TOML_BYTES = 1 << 20

SHOWN_NAME = 40
"""Characters of a row's field name that an error shows."""
SHOWN_NAMES = 5
"""How many of a row's field names an error shows."""

DIMENSIONS = 256
"""Numbers in an embedding, by default."""
MAX_LABELS = 10_000

TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
TASK_RULE = "1 to 64 of the letters a-z and A-Z, digits, '_' and '-', starting with a letter or digit"
ALIAS_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
ALIAS_RULE = "1 to 32 of the letters a-z, digits, '_' and '-', starting with a letter"
VERSION = re.compile(r"[1-9][0-9]{0,8}")

Pair = tuple[tuple[int, int], tuple[int, int]]
"""For each text of a pair, its first character in the prompt and the one after its last."""


class TaskSpec(Document):
    """All that is needed to make a prompt for a side network of this task and to read its answer."""

    name: str
    kind: Kind
    template: str = Field(min_length=1, max_length=10_000)
    """The prompt, with the row's fields in braces: `question: {question} sentence: {sentence}`."""
    images: tuple[str, ...] = Field(default=(), exclude_if=lambda value: not value)
    """The row's fields that are images, in the order in which the side network reads them; the template does not have
    them. Documents of tasks that read text alone do not have it."""
    labels: tuple[str, ...] = Field(default=(), max_length=MAX_LABELS)
    """Classification and multilabel: the classes, as the words the model says; integers are taken as their text. Token
    classification: the types of entities. Empty for other kinds."""
    label_index: bool = Field(default=False, exclude_if=lambda value: not value)
    """Classification and multilabel: integers in data files are positions in `labels`, from 0. Documents have it only
    where true."""
    open_labels: bool = Field(default=False, exclude_if=lambda value: not value)
    """Classification: targets may be texts that are no labels. Such rows teach nothing, and count as wrong in
    evaluation. Documents have it only where true."""
    low: float | None = Field(default=None, allow_inf_nan=False)
    high: float | None = Field(default=None, allow_inf_nan=False)
    """Regression: answers are clipped to low..high; training values outside are errors."""
    dimensions: int = Field(default=0, ge=0, le=MAX_DIMENSIONS, exclude_if=lambda value: value == 0)
    """Embedding: numbers in an answer; DIMENSIONS when not given. 0 for other kinds, whose documents do not have it."""
    max_source_tokens: int = Field(default=128, ge=1, le=1 << 16)
    max_rows: int = Field(default=1024, ge=1, le=1 << 20)
    """Most rows in one request."""
    max_chars: int = Field(default=20_000, ge=1, le=1 << 24)
    """Longest value of one field."""
    max_new_tokens: int = Field(default=64, ge=1, le=1 << 14)
    """Text: longest answer."""
    generation: GenerationSpec = Field(default_factory=GenerationSpec, exclude_if=lambda value: value.is_default)
    """Text: how tokens are chosen. Documents of greedy tasks do not have it."""
    target: str = ""
    """Name of the expected answer in data files; that of the kind in KINDS when not given."""
    metric: str = ""
    """What evaluation reports and training selects by; the first of its kind's metrics when not given."""
    description: str = Field(default="", max_length=10_000)

    @classmethod
    def from_toml(cls, source: str | Path) -> Self:
        """Read a spec that a person wrote: from a Path, from a string that ends in `.toml`, else from TOML text.

        Raises:
            InvalidSpec: unreadable, not TOML, or fields missing, wrong or misspelt: all of them in one message.
        """
        is_file = isinstance(source, Path) or (source.endswith(".toml") and "\n" not in source)
        origin = str(source) if is_file else "the given text"
        try:
            table = tomllib.loads(_read_text(Path(source).expanduser()) if is_file else str(source))
            if faults := toml_faults(cls, table):
                raise InvalidSpec(origin, "; ".join(faults))
            return cls.model_validate(table)
        except OSError as error:
            raise InvalidSpec(origin, error.strerror or str(error)) from None
        except UnicodeDecodeError as error:
            raise InvalidSpec(origin, f"not UTF-8 at byte {error.start}") from None
        except ValueError as error:
            raise InvalidSpec(origin, str(error)) from None

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The template's field names, in order, without repetition."""
        return template_fields(self.template)

    @property
    def inputs(self) -> tuple[str, ...]:
        """All that a row needs: the template's fields, then the images."""
        return (*self.fields, *self.images)

    @property
    def has_pair(self) -> bool:
        """Whether the template has two texts, which a side network can read apart."""
        return len(self.fields) == 2

    @property
    def outputs(self) -> int:
        """Width of a linear head for this task; 0 for text, which a linear head cannot answer."""
        kind = KINDS[self.kind]
        if kind.makes_text:
            return 0
        if kind.has_spans:
            return 2 * len(self.labels) + 1  # outside, and for each label the beginning and the inside of a span
        if kind.has_labels:
            return len(self.labels)
        return self.dimensions if kind.has_dimensions else 1

    @cached_property
    def frame(self) -> tuple[str, str]:
        """What the template has before its only field and after it; for tasks that answer with spans of the text."""
        before, after = "", ""
        found = False
        for literal, name, _, _ in Formatter().parse(self.template):
            before, after = (before, after + literal) if found else (before + literal, after)
            found |= name is not None
        return before, after

    def render(self, row: Mapping[str, str | bytes]) -> str:
        """The prompt of one row. Fields that the template does not name are ignored, so that tasks can share a row.

        Raises:
            InvalidRow: a field is missing, not text, empty, too long or not encodable.
        """
        if missing := [name for name in self.fields if name not in row]:
            raise InvalidRow(missing[0], self._lack(row, missing))
        for name in self.fields:
            self._check_value(name, row[name])
        return self.template.format_map(row)

    def render_pair(self, row: Mapping[str, str | bytes]) -> tuple[str, Pair]:
        """As `render`, and where the texts of the two fields lie in the prompt. For a spec that `has_pair`.

        Raises:
            InvalidRow: as `render`.
        """
        prompt = self.render(row)
        cuts: dict[str, tuple[int, int]] = {}
        start = 0
        for literal, name, _, _ in Formatter().parse(self.template):
            start += len(literal)
            if name is not None:
                end = start + len(row[name])
                cuts.setdefault(name, (start, end))
                start = end
        first, second = cuts.values()
        return prompt, (first, second)

    def images_of(self, row: Mapping[str, str | bytes]) -> tuple[bytes, ...]:
        """The bytes of a row's images, in the order of `images`. They are not looked into.

        Raises:
            InvalidRow: an image is missing, empty, or not bytes.
        """
        if missing := [name for name in self.images if name not in row]:
            raise InvalidRow(missing[0], self._lack(row, missing))
        return tuple(_image_bytes(name, row[name]) for name in self.images)

    def _lack(self, row: Mapping[str, str | bytes], missing: list[str]) -> str:
        """Why a row cannot be rendered: what it lacks, and its own names, one of which may be misspelt."""
        others = f", {', '.join(missing[1:])} too" if missing[1:] else ""
        names = ", ".join(ascii(str(name)[:SHOWN_NAME])[:SHOWN_NAME] for name in islice(row, SHOWN_NAMES)) or "no field"
        return f"is missing{others}; task {self.name!r} needs {', '.join(self.inputs)}, the row has {names}"

    def _check_value(self, name: str, value: object) -> None:
        if isinstance(value, bytes):
            raise InvalidRow(name, "must be text, got bytes; an image belongs into an image field")
        if not isinstance(value, str):
            raise InvalidRow(name, f"must be text, got {type(value).__name__}")
        if len(value) > self.max_chars:
            raise InvalidRow(name, f"has {len(value)} characters, at most {self.max_chars} are allowed; shorten it")
        if not value or value.isspace():
            raise InvalidRow(name, "is empty; give it some text")
        if fault := text_fault(value):
            raise InvalidRow(name, f"holds {fault}; remove it")

    @model_validator(mode="before")
    @classmethod
    def _default_by_kind(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kind = KINDS.get(str(data.get("kind")))
        if kind is None:
            return data
        metric = data.get("metric") or kind.metrics[0]
        filled = {**data, "target": data.get("target") or kind.target, "metric": metric}
        return {"dimensions": DIMENSIONS, **filled} if kind.has_dimensions else filled

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not TASK_NAME.fullmatch(name):
            raise ValueError(f"must be {TASK_RULE}, got {name[:80]!r}")
        return name

    @field_validator("labels", mode="before")
    @classmethod
    def _integers_as_text(cls, labels: Any) -> Any:
        if not isinstance(labels, list | tuple):
            return labels
        return tuple(str(label) if type(label) is int else label for label in labels)

    @field_validator("template")
    @classmethod
    def _check_template(cls, template: str) -> str:
        if fault := text_fault(template):
            raise ValueError(f"holds {fault}")
        template_fields(template)
        return template

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        check_rules(self, self.fields)
        return self


@dataclass(frozen=True, slots=True)
class TaskRef:
    """A task by alias or version: `sst2` (its production version), `sst2@canary` or `sst2:7`."""

    task: str
    alias: str | None = None
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """A reference from its text. Raises InvalidName."""
        name, mark, rest = next((parts for mark in "@:" if (parts := text.partition(mark))[1]), (text, "", ""))
        check_task_name(name)
        if mark == "@":
            return cls(name, alias=check_alias(rest))
        if mark == ":" and not VERSION.fullmatch(rest):
            raise InvalidName("reference", text, "TASK, TASK@alias or TASK:version, where a version is 1, 2, 3 ...")
        return cls(name, version=int(rest) if mark else None)

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.task}:{self.version}"
        return self.task if self.alias is None else f"{self.task}@{self.alias}"


def check_task_name(name: str) -> str:
    """The name itself. Raises InvalidName."""
    if not TASK_NAME.fullmatch(name):
        raise InvalidName("task name", name, TASK_RULE)
    return name


def check_group_name(name: str) -> str:
    """The name itself. Raises InvalidName."""
    if not TASK_NAME.fullmatch(name):
        raise InvalidName("group name", name, TASK_RULE)
    return name


def check_alias(alias: str) -> str:
    """The alias itself. It starts with a letter, so that it never looks like a version. Raises InvalidName."""
    if not ALIAS_NAME.fullmatch(alias):
        raise InvalidName("alias", alias, ALIAS_RULE)
    return alias


def _image_bytes(name: str, value: object) -> bytes:
    if isinstance(value, str):
        raise InvalidRow(name, "must be the bytes of an image, got text; a path or URL is never opened here")
    if not isinstance(value, bytes):
        raise InvalidRow(name, f"must be the bytes of an image, got {type(value).__name__}")
    if not value:
        raise InvalidRow(name, "is empty; give it the bytes of an image")
    return value


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_TOML_BYTES + 1)
    if len(data) > MAX_TOML_BYTES:
        raise ValueError(f"it is larger than {MAX_TOML_BYTES} bytes")
    return data.decode()
