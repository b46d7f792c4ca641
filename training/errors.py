"""What can go wrong offline, each with a stable `reason` and a text that says what to do.

    TrainingError
    ├── UnknownBuiltinTask   no such built-in task
    ├── DataError            a file of examples cannot be used
    ├── MetricError          predictions cannot be scored
    ├── RecipeError          a setting out of its range
    └── RunError             a run folder cannot be used as asked

The fields are the arguments of `super().__init__`, so that every error pickles. A task spec's file that cannot be used
is the registry's InvalidSpec: specs are its documents.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path


class TrainingError(Exception):
    """Root of all errors of this package; catch it to report a user's mistake in one line."""

    reason = "TRAINING_ERROR"


class UnknownBuiltinTask(TrainingError):
    """A task was named that is neither built in nor a TOML file."""

    reason = "UNKNOWN_BUILTIN_TASK"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        known = tuple(known)
        super().__init__(name, known)
        self.name, self.known = name, known

    def __str__(self) -> str:
        near = difflib.get_close_matches(self.name.lower()[:64], self.known, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        return (
            f"no built-in task {self.name!r}{meant}; give one of {', '.join(self.known)}, or a task spec's .toml file"
        )


class DataError(TrainingError):
    """A file of examples cannot be used. `line` counts from 1 (rows in Parquet); None is the file as a whole."""

    reason = "BAD_DATA"

    def __init__(self, path: str | Path, line: int | None, why: str) -> None:
        super().__init__(str(path), line, why)
        self.path, self.line, self.why = str(path), line, why

    def __str__(self) -> str:
        unit = "row" if self.path.lower().endswith(".parquet") else "line"
        where = self.path if self.line is None else f"{self.path}, {unit} {self.line}"
        return f"{where}: {self.why}"


class MetricError(TrainingError):
    """Predictions cannot be scored by this metric."""

    reason = "BAD_METRIC"

    def __init__(self, metric: str, why: str) -> None:
        super().__init__(metric, why)
        self.metric, self.why = metric, why

    def __str__(self) -> str:
        return f"metric {self.metric}: {self.why}"


class RecipeError(TrainingError):
    """A training setting is out of its range."""

    reason = "BAD_RECIPE"

    def __init__(self, name: str, value: object, rule: str) -> None:
        super().__init__(name, value, rule)
        self.name, self.value, self.rule = name, value, rule

    def __str__(self) -> str:
        return f"{self.name} must be {self.rule}, got {self.value!r}"


class RunError(TrainingError):
    """A run folder cannot be used as asked."""

    reason = "BAD_RUN"

    def __init__(self, folder: str | Path, why: str) -> None:
        super().__init__(str(folder), why)
        self.folder, self.why = str(folder), why

    def __str__(self) -> str:
        return f"{self.folder}: {self.why}"
