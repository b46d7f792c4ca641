"""Scopes: what a caller may do, as `VERB` or `VERB:PATTERN`, such as `predict:sst2*`.

A pattern is a shell's: `*` is any text, `?` one character, `[abc]` one of these; case counts. Without one it is `*`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

PREDICT: Final = "predict"
READ: Final = "read"
PUBLISH: Final = "publish"
ADMIN: Final = "admin"

VERBS = (PREDICT, READ, PUBLISH, ADMIN)
"""`predict` sends rows to tasks; `read` sees tasks, their versions and figures; `publish` publishes versions, sets
routes and rolls back; `admin` does everything, also what no other verb allows, such as to retire a version."""

GRANTED_BY = {
    PREDICT: {PREDICT, ADMIN},
    READ: {PREDICT, READ, PUBLISH, ADMIN},
    PUBLISH: {PUBLISH, ADMIN},
    ADMIN: {ADMIN},
}
"""The verbs of scopes that allow a verb. Who may predict or publish a task may see it: clients ask for its inputs."""

EVERY_TASK = "*"
PATTERN = re.compile(r"[A-Za-z0-9_.\-*?\[\]!]{1,200}")


@dataclass(frozen=True, slots=True)
class Scope:
    """One verb on the tasks whose names match a pattern."""

    verb: str
    pattern: str = EVERY_TASK

    @classmethod
    def parse(cls, text: str) -> "Scope":
        """The scope that a text such as `predict:sst2*` names.

        Raises:
            ValueError: it names none. The message says what scopes look like.
        """
        verb, mark, pattern = text.partition(":")
        if verb not in VERBS or (mark and not PATTERN.fullmatch(pattern)):
            raise ValueError(
                f"{text[:80]!r} is no scope; use {', '.join(VERBS)}, alone or with tasks, as predict:sst2*"
            )
        return cls(verb, pattern or EVERY_TASK)

    def __str__(self) -> str:
        return self.verb if self.pattern == EVERY_TASK else f"{self.verb}:{self.pattern}"


class Scopes:
    """The scopes of one caller."""

    def __init__(self, scopes: Iterable[Scope]) -> None:
        self._patterns: dict[str, tuple[str, ...]] = {}
        """By verb that is asked for: patterns of the tasks for which it is allowed."""
        held = tuple(scopes)
        for verb, by in GRANTED_BY.items():
            self._patterns[verb] = tuple(dict.fromkeys(scope.pattern for scope in held if scope.verb in by))

    def allow(self, verb: str, task: str) -> bool:
        """Whether the verb is allowed for the task."""
        return any(fnmatchcase(task, pattern) for pattern in self._patterns[verb])

    def allow_every_task(self, verb: str) -> bool:
        """Whether the verb is allowed for all tasks."""
        return EVERY_TASK in self._patterns[verb]

    def allow_some_task(self, verb: str) -> bool:
        """Whether the verb is allowed for any task at all."""
        return bool(self._patterns[verb])
