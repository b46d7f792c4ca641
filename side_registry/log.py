"""The commit log: `log/<20 digits>.json`, one commit each, put if absent. Its last position is the generation.

Knows how commits are written and read, not the state they lead to (state.py). Precedent: Delta Lake's log.
"""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from side_registry.documents import MAX_NUMBER, SCHEMA_VERSION, Document, explain, newer_schema
from side_registry.errors import RegistryError, StoreFailed, UnreadableCommit
from side_registry.manifest import Digest
from side_registry.route import Route, Version
from side_registry.specs.task import ALIAS_NAME, TASK_NAME, VERSION
from side_registry.store import BadObject, Store

MAX_COMMIT_BYTES = 4 << 20
READ_AHEAD = 16
"""Most commits that are read at a time."""
FAR_S = 0.005
"""From a store that takes longer than this for one commit, several are read in parallel; else one after the other."""

NAME = re.compile(r"log/(?P<generation>\d{20})\.json")

TaskName = Annotated[str, StringConstraints(pattern=rf"^{TASK_NAME.pattern}$")]
AliasName = Annotated[str, StringConstraints(pattern=rf"^{ALIAS_NAME.pattern}$")]
Reference = Annotated[
    str,
    StringConstraints(pattern=rf"^{TASK_NAME.pattern}(@{ALIAS_NAME.pattern}|:{VERSION.pattern})?$"),
]
"""Of a task: `sst2`, `sst2@canary` or `sst2:7`."""
MAX_MEMBERS = 1000
"""Tasks of a group."""


class Publish(Document):
    """A task's next version. Carries what a listing shows, so that listing reads no manifests."""

    type: Literal["publish"] = "publish"
    task: TaskName
    version: Version
    manifest_sha256: Digest
    kind: str
    backbone: str
    """Fingerprint."""
    run_id: str = ""
    untrained: bool = Field(default=False, exclude_if=lambda value: not value)


class SetAlias(Document):
    """The alias points to the version from now on; its route becomes plain."""

    type: Literal["set_alias"] = "set_alias"
    task: TaskName
    alias: AliasName
    version: Version


class SetRoute(Document):
    """How the alias's traffic is split from now on, whatever it was before."""

    type: Literal["set_route"] = "set_route"
    task: TaskName
    alias: AliasName
    route: Route


class Rollback(Document):
    """The alias points again to an earlier version of its past; the versions after that leave its past."""

    type: Literal["rollback"] = "rollback"
    task: TaskName
    alias: AliasName
    version_from: Version
    version_to: Version


class Retire(Document):
    """The version can no longer be used."""

    type: Literal["retire"] = "retire"
    task: TaskName
    version: Version


class DeleteTask(Document):
    """All versions are retired, and the aliases removed."""

    type: Literal["delete_task"] = "delete_task"
    task: TaskName


class SetGroup(Document):
    """The group has these tasks from now on: its next version."""

    type: Literal["set_group"] = "set_group"
    group: TaskName
    version: Version
    members: tuple[Reference, ...] = Field(min_length=1, max_length=MAX_MEMBERS)


class RollbackGroup(Document):
    """The group has the tasks of an earlier version of its past again; the versions after that leave its past."""

    type: Literal["rollback_group"] = "rollback_group"
    group: TaskName
    version_from: Version
    version_to: Version


class DeleteGroup(Document):
    """There is no such group any more. Its tasks stay."""

    type: Literal["delete_group"] = "delete_group"
    group: TaskName


TaskAction = Publish | SetAlias | SetRoute | Rollback | Retire | DeleteTask
GroupAction = SetGroup | RollbackGroup | DeleteGroup
Action = TaskAction | GroupAction


class Commit(Document):
    """Actions that become true together."""

    schema_version: int = SCHEMA_VERSION
    generation: int = Field(ge=1, le=MAX_NUMBER)
    id: str
    """Random. A writer recognizes its own commit by it, when the store repeated the put."""
    time: str
    """ISO 8601, UTC, by the writer's clock; for people. Order is the generation's."""
    author: str = ""
    message: str = ""
    parent: str | None = None
    """Id of the commit before; empty for the first. None: written by an older program."""
    actions: tuple[Annotated[Action, Field(discriminator="type")], ...] = Field(min_length=1)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it changes, without repetition."""
        return tuple(dict.fromkeys(action.task for action in self.actions if isinstance(action, TaskAction)))

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that it changes, without repetition."""
        return tuple(dict.fromkeys(action.group for action in self.actions if isinstance(action, GroupAction)))


class Log:
    """The log of one store. Each call blocks on the store and may raise StoreFailed."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, generation: int) -> Commit | None:
        """One commit; None when the log does not reach that far.

        Raises:
            UnreadableCommit: damaged, foreign, or from a newer program.
        """
        path = log_path(generation)
        try:
            data = self._store.read(path, MAX_COMMIT_BYTES)
        except BadObject as error:
            raise UnreadableCommit(path, str(error)) from None
        return None if data is None else _parse(path, data, generation)

    def after(self, generation: int) -> Iterator[Commit]:
        """The commits after a generation, up to the end of the log; several at a time once there is more than one.

        Raises:
            UnreadableCommit: when it comes to an unreadable commit, after all that precede it.
        """
        ahead = 1
        read = self._read_run
        while True:
            asked = time.monotonic()
            for commit in read(range(generation + 1, generation + 1 + ahead)):
                if commit is None:
                    return
                yield commit
            if ahead == 1 and time.monotonic() - asked > FAR_S:
                read = self._read_many
            generation += ahead
            ahead = min(2 * ahead, READ_AHEAD)

    def append(self, commit: Commit) -> Commit | None:
        """Write a commit at its generation. Returns the commit that is there then: this one, or another writer's.

        None when the store reports one there and then cannot find it.

        Raises:
            UnreadableCommit: this commit would be unreadable, and is not written; or the one that is there is.
        """
        path, data = log_path(commit.generation), commit.to_json()
        if len(data) > MAX_COMMIT_BYTES:
            raise UnreadableCommit(path, f"it would have {len(data)} bytes, at most {MAX_COMMIT_BYTES} are read")
        commit = _parse(path, data, commit.generation)
        try:
            return commit if self._store.put_new(path, data) else self.read(commit.generation)
        except StoreFailed:
            if self._holds(commit):  # only the answer was lost
                return commit
            raise

    def _read_run(self, generations: range) -> Iterator[Commit | None]:
        """Commits that are read one after the other, by one request of the store."""
        if len(generations) > 1:
            paths = [log_path(generation) for generation in generations]
            for generation, data in zip(generations, self._store.read_run(paths, MAX_COMMIT_BYTES), strict=False):
                yield _parse(log_path(generation), data, generation)
                generations = generations[1:]
        for generation in generations:  # there is none, or it says why it cannot be read
            yield self.read(generation)

    def _read_many(self, generations: range) -> Iterator[Commit | None]:
        """Commits that are read in parallel."""
        with ThreadPoolExecutor(len(generations), "log") as readers:
            yield from readers.map(self.read, generations)

    def _holds(self, commit: Commit) -> bool:
        try:
            written = self.read(commit.generation)
        except RegistryError:
            return False
        return written is not None and written.id == commit.id


def log_path(generation: int) -> str:
    """Path of a commit in the store."""
    return f"log/{generation:020d}.json"


def _parse(path: str, data: bytes, generation: int) -> Commit:
    try:
        commit = Commit.model_validate_json(data)
    except ValidationError as error:
        raise UnreadableCommit(path, _why(error)) from None
    if fault := newer_schema(commit.schema_version):
        raise UnreadableCommit(path, fault)
    if commit.generation != generation:
        raise UnreadableCommit(path, f"it says that it is generation {commit.generation}")
    return commit


def _why(error: ValidationError) -> str:
    for fault in error.errors(include_url=False):
        if fault["type"] == "union_tag_invalid":
            return f"this program does not know its action {fault.get('ctx', {}).get('tag')!r}, upgrade sidecast"
    return explain(error)
