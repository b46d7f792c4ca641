"""Errors of training and evaluation, each with a stable `reason` and a text that says what to do.

    TrainingError
    ├── UnknownBuiltinTask   no such built-in task
    ├── DataError            a file of examples cannot be used
    ├── MetricError          predictions cannot be scored
    ├── RecipeError          a setting out of its range
    ├── RunError             a run folder cannot be used as asked
    ├── RequirementError     a gate's requirement cannot be read
    ├── TeacherError         a model cannot be absorbed
    └── GateRefused          a run does not measure what its gate requires

A task spec's file that cannot be used is the registry's InvalidSpec: specs are its documents.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

JSON_NAMES = {type(None): "null", bool: "a boolean", dict: "an object", list: "an array", bytes: "bytes"}
"""By the type of a value: what a message calls it."""


@dataclass(eq=False)
class TrainingError(Exception):
    """Root of all errors of this package; catch it to report a user's mistake in one line.

    A kind of error is a dataclass: its fields, its `reason`, and the format string `message`, which reads the error as
    `{self}`. It pickles by its fields.
    """

    reason: ClassVar[str] = "TRAINING_ERROR"
    message: ClassVar[str] = ""

    def __post_init__(self) -> None:
        self.args = tuple(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        return self.message.format(self=self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args


@dataclass(eq=False)
class UnknownBuiltinTask(TrainingError):
    """A task was named that is neither built in nor a TOML file."""

    name: str
    known: Iterable[str]
    """Names of the built-in tasks; kept as a tuple."""
    file: str = ""
    """The task spec here that is called so, if there is one."""

    reason = "UNKNOWN_BUILTIN_TASK"
    message = "no built-in task {self.name!r}{self.hint}; give one of {self.names}, or a task spec's .toml file"

    def __post_init__(self) -> None:
        self.known = tuple(self.known)
        super().__post_init__()

    @property
    def names(self) -> str:
        """The known tasks in one line."""
        return ", ".join(self.known)

    @property
    def hint(self) -> str:
        """The file of that name or the nearest of the known names, in brackets; nothing where none is near."""
        if self.file:
            return f" (did you mean {self.file}?)"
        near = difflib.get_close_matches(self.name.lower()[:64], tuple(self.known), n=1)
        return f" (did you mean {near[0]}?)" if near else ""


@dataclass(eq=False)
class DataError(TrainingError):
    """A file of examples cannot be used."""

    path: str | Path
    line: int | None
    """From 1 (rows in Parquet); None is the file as a whole."""
    why: str

    reason = "BAD_DATA"
    message = "{self.where}: {self.why}"

    @property
    def where(self) -> str:
        """The path, and the line or row where one is at fault."""
        if self.line is None:
            return str(self.path)
        unit = "row" if str(self.path).lower().endswith(".parquet") else "line"
        return f"{self.path}, {unit} {self.line}"


@dataclass(eq=False)
class MetricError(TrainingError):
    """Predictions cannot be scored by this metric."""

    metric: str
    why: str

    reason = "BAD_METRIC"
    message = "metric {self.metric}: {self.why}"


@dataclass(eq=False)
class RecipeError(TrainingError):
    """A training setting is out of its range."""

    name: str
    value: object
    rule: str
    """What holds for values that are allowed: "must be <rule>"."""

    reason = "BAD_RECIPE"
    message = "{self.name} must be {self.rule}, got {self.value!r}"


@dataclass(eq=False)
class RunError(TrainingError):
    """A run folder cannot be used as asked."""

    folder: str | Path
    why: str

    reason = "BAD_RUN"
    message = "{self.folder}: {self.why}"


class NoMemoryError(RunError):
    """Memory ran out in a step of training."""

    reason = "OUT_OF_MEMORY"


def shown(text: str) -> str:
    """A value as a message quotes it: its beginning, if it is long."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


class Misfit(Exception):
    """A value of a data file that does not fit the spec; what reads the file makes a DataError of it, with the line."""


@dataclass(eq=False)
class RequirementError(TrainingError):
    """A gate's requirement cannot be read, or there is nothing to measure it on."""

    requirement: str
    """As it was given; for what is missing, the option's name."""
    why: str

    reason = "BAD_REQUIREMENT"
    message = "{self.requirement}: {self.why}"


@dataclass(eq=False)
class TeacherError(TrainingError):
    """A model cannot be absorbed: it cannot be loaded safely, or its answers cannot teach the task."""

    folder: str | Path
    why: str

    reason = "BAD_TEACHER"
    message = "{self.folder}: {self.why}"


@dataclass(eq=False)
class GateRefused(TrainingError):
    """A run does not measure what its gate requires; it was not published."""

    task: str
    faults: tuple[str, ...]
    """What is not met, each with its figures."""
    rows: int

    reason = "GATE_REFUSED"
    message = "{self.task} is not published: {self.listed} (measured on {self.rows} rows)"
    exit_code: ClassVar[int] = 1
    """Of the command: not a mistake in how it was called, which is 2."""

    @property
    def listed(self) -> str:
        """The faults in one line."""
        return "; ".join(self.faults)
