"""The commit log: `log/<20 digits>.json`, one commit each, put if absent. Its last position is the generation.

Knows how commits are written and read, not what they add up to (state.py). Precedent: Delta Lake's log.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from side_registry.documents import SCHEMA_VERSION, Document, explain, newer_schema
from side_registry.errors import UnreadableCommit
from side_registry.manifest import Digest
from side_registry.store import Store, TooLarge
from side_registry.task import ALIAS_NAME, TASK_NAME

MAX_COMMIT_BYTES = 4 << 20

Version = Annotated[int, Field(ge=1)]
TaskName = Annotated[str, StringConstraints(pattern=rf"^{TASK_NAME.pattern}$")]
AliasName = Annotated[str, StringConstraints(pattern=rf"^{ALIAS_NAME.pattern}$")]


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


class SetAlias(Document):
    type: Literal["set_alias"] = "set_alias"
    task: TaskName
    alias: AliasName
    version: Version


class Rollback(Document):
    """The alias goes back to where it was `version_to` last; what came after is forgotten."""

    type: Literal["rollback"] = "rollback"
    task: TaskName
    alias: AliasName
    version_from: Version
    version_to: Version


class Retire(Document):
    type: Literal["retire"] = "retire"
    task: TaskName
    version: Version


class DeleteTask(Document):
    type: Literal["delete_task"] = "delete_task"
    task: TaskName


Action = Publish | SetAlias | Rollback | Retire | DeleteTask


class Commit(Document):
    """Actions that become true together."""

    schema_version: int = SCHEMA_VERSION
    generation: int = Field(ge=1)
    id: str
    """Random. A writer whose put was retried underneath it recognizes its own commit by it."""
    time: str
    """ISO 8601, UTC, by the writer's clock; for people. Order is the generation's."""
    author: str = ""
    message: str = ""
    actions: tuple[Annotated[Action, Field(discriminator="type")], ...] = Field(min_length=1)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks it is about, each once."""
        return tuple(dict.fromkeys(action.task for action in self.actions))


class Log:
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
        except TooLarge as error:
            raise UnreadableCommit(path, str(error)) from None
        return None if data is None else _parse(path, data, generation)

    def after(self, generation: int) -> Iterator[Commit]:
        """The commits that follow, up to the end of the log."""
        while commit := self.read(generation := generation + 1):
            yield commit

    def append(self, commit: Commit) -> bool:
        """Make a commit the next one; False when another writer's is."""
        if self._store.put_new(log_path(commit.generation), commit.to_json()):
            return True
        winner = self.read(commit.generation)
        return winner is not None and winner.id == commit.id


def log_path(generation: int) -> str:
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
