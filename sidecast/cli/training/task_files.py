"""Files of `sidecast train` by task: `--train FILE` for all, `--train data/{task}.csv`, or `--train TASK=FILE` each."""

from collections.abc import Sequence
from dataclasses import dataclass

from sidecast.cli.app import UserError

PLACEHOLDER = "{task}"
"""In a file's or folder's name: the task's."""


def filled(path: str, task: str) -> str:
    """The path of a task, from one with a placeholder."""
    return path.replace(PLACEHOLDER, task)


@dataclass(frozen=True)
class PerTask:
    """The value of an option for each task."""

    plain: str | None
    """Of tasks that are not named, with or without a placeholder; None where there is none."""
    named: dict[str, str]

    @classmethod
    def parse(cls, option: str, values: Sequence[str], tasks: Sequence[str]) -> "PerTask":
        """Read what was given: a plain value, of which the last counts, or one for each task by its name.

        What has no task's name before its first `=` is a plain value.
        """
        plain: list[str] = []
        named: dict[str, str] = {}
        for value in values:
            task, _, path = value.partition("=")
            if task not in tasks or not path:
                plain.append(value)
            elif task in named:
                raise UserError(f"{option} is given twice for {task}; give it once")
            else:
                named[task] = path
        if plain and named:
            names = ", ".join(tasks)
            raise UserError(f"{option} {plain[0]} names no task; write {option} TASK=FILE for each of {names}")
        return cls(plain[-1] if plain else None, named)

    @property
    def given(self) -> bool:
        """Whether the option has a value."""
        return self.plain is not None or bool(self.named)

    def of(self, task: str) -> str | None:
        """The value for a task; None where it has none."""
        if task in self.named:
            return self.named[task]
        return None if self.plain is None else filled(self.plain, task)

    def required(self, option: str, task: str) -> str:
        """The value for a task that must have one."""
        path = self.of(task)
        if path is None:
            raise UserError(f"{option} has no file for {task}; add {option} {task}=FILE")
        return path
