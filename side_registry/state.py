"""What the log adds up to: tasks, versions, aliases and routes. An immutable value, folded one commit after another.

Knows no store. Folding is a pure function, so any two readers of the same log hold the same state.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from side_registry.errors import UnknownAlias, UnknownGroup, UnknownTask, UnknownVersion, UnreadableCommit
from side_registry.groups import GroupState, apply_group
from side_registry.log import (
    Action,
    Commit,
    DeleteTask,
    GroupAction,
    Publish,
    Retire,
    Rollback,
    SetAlias,
    SetRoute,
    TaskAction,
    log_path,
)
from side_registry.route import PLAIN, Route
from side_registry.specs.task import PRODUCTION, TaskRef

ALIAS_MEMORY = 64
"""Versions of an alias's past that are kept: a rollback goes no further."""

Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionState:
    """One published version, as far as the log tells: a listing needs no manifest."""

    version: int
    manifest_sha256: str
    kind: str
    backbone: str
    """Fingerprint."""
    run_id: str
    published_at: str
    """ISO 8601, UTC, by the publisher's clock."""
    author: str
    message: str
    generation: int
    """Of its publish."""
    retired: bool = False
    untrained: bool = False
    """No training has changed its weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """One task. When it is deleted it keeps its versions, retired: no number is used twice."""

    name: str
    versions: Mapping[int, VersionState] = field(default_factory=dict)
    aliases: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The versions of each alias, oldest first; the last is the alias's main version."""
    routes: Mapping[str, Route] = field(default_factory=dict)
    """By alias; plain ones are left out. They name versions that are not retired, and never the main version."""
    routed: Mapping[str, int] = field(default_factory=dict)
    """The generation that set each of `routes`."""
    ended: Mapping[str, int] = field(default_factory=dict)
    """By alias: the generation that took its last shares away, if it got none since and did not move."""
    deleted: bool = False

    @property
    def last_version(self) -> int:
        """Highest version number, retired ones too; 0 when there is none."""
        return max(self.versions, default=0)

    @property
    def live(self) -> tuple[int, ...]:
        """Versions that are not retired, oldest first."""
        return tuple(sorted(number for number, entry in self.versions.items() if not entry.retired))

    @property
    def serving(self) -> dict[str, int]:
        """The version of each alias."""
        return {alias: stack[-1] for alias, stack in self.aliases.items()}

    def entry(self, version: int) -> VersionState:
        """A version, retired or not. Raises UnknownVersion."""
        if version not in self.versions:
            raise UnknownVersion(self.name, version, self.live)
        return self.versions[version]

    def live_entry(self, version: int) -> VersionState:
        """A version that is not retired. Raises UnknownVersion."""
        entry = self.entry(version)
        if entry.retired:
            raise UnknownVersion(self.name, version, self.live, retired=True)
        return entry

    def at(self, alias: str) -> int:
        """The alias's main version. Raises UnknownAlias."""
        if alias not in self.aliases:
            raise UnknownAlias(self.name, alias, tuple(self.aliases))
        return self.aliases[alias][-1]

    def route(self, alias: str) -> Route:
        """How the alias's traffic is split; plain unless a route was set."""
        return self.routes.get(alias, PLAIN)

    @property
    def used(self) -> frozenset[int]:
        """Versions that an alias points to, or names in its route."""
        return frozenset(self.serving.values()).union(*(route.versions for route in self.routes.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The registry at one generation. Generation 0 is empty."""

    generation: int = 0
    head: str = ""
    """Id of the last commit."""
    tasks: Mapping[str, TaskState] = field(default_factory=dict)
    """By name; deleted ones too (`live` leaves them out)."""
    groups: Mapping[str, GroupState] = field(default_factory=dict)
    """By name; deleted ones too (`live_groups` leaves them out)."""

    @property
    def live_groups(self) -> dict[str, GroupState]:
        """The groups that are not deleted, by name."""
        return {name: group for name, group in sorted(self.groups.items()) if group.past}

    def group(self, name: str) -> GroupState:
        """A group that is not deleted. Raises UnknownGroup."""
        group = self.groups.get(name)
        if group is None or not group.past:
            raise UnknownGroup(name, tuple(self.live_groups))
        return group

    @property
    def live(self) -> dict[str, TaskState]:
        """The tasks that are not deleted, by name."""
        return {name: task for name, task in sorted(self.tasks.items()) if not task.deleted}

    def task(self, name: str) -> TaskState:
        """A task that is not deleted. Raises UnknownTask."""
        task = self.tasks.get(name)
        if task is None or task.deleted:
            raise UnknownTask(name, tuple(self.live))
        return task

    def resolve(self, ref: TaskRef) -> int:
        """The version a reference means; without alias or version, production's.

        Raises:
            UnknownTask, UnknownVersion (a retired one too), UnknownAlias.
        """
        task = self.task(ref.task)
        if ref.version is not None:
            return task.live_entry(ref.version).version
        return task.at(ref.alias or PRODUCTION)


class Fold:
    """A state under construction. Copies the tasks once, however many commits follow."""

    def __init__(self, start: State) -> None:
        self._start = start
        self._last: Commit | None = None
        self._tasks: dict[str, TaskState] = {}
        self._groups: dict[str, GroupState] = {}

    def add(self, commit: Commit) -> None:
        """Apply all of a commit's actions, or none.

        Raises:
            UnreadableCommit: it does not follow from what came before.
        """
        generation, head = (
            (self._last.generation, self._last.id) if self._last else (self._start.generation, self._start.head)
        )
        if commit.generation != generation + 1:
            raise UnreadableCommit(log_path(commit.generation), f"it cannot follow generation {generation}")
        if commit.parent not in (None, head):
            raise UnreadableCommit(log_path(commit.generation), f"it does not follow this log's commit {generation}")
        if self._last is None:
            self._tasks = dict(self._start.tasks)
            self._groups = dict(self._start.groups)
        changed: dict[str, TaskState] = {}
        groups: dict[str, GroupState] = {}
        for action in commit.actions:
            if isinstance(action, GroupAction):
                group = groups.get(action.group) or self._groups.get(action.group) or GroupState(name=action.group)
                groups[action.group] = _apply_group(group, action, commit)
                continue
            task = changed.get(action.task) or self._tasks.get(action.task) or TaskState(name=action.task)
            changed[action.task] = _apply(task, action, commit)
        self._tasks.update(changed)
        self._groups.update(groups)
        self._last = commit

    def state(self) -> State:
        """The state after the last commit that was added."""
        if self._last is None:
            return self._start
        return State(
            generation=self._last.generation,
            head=self._last.id,
            tasks=dict(self._tasks),
            groups=dict(self._groups),
        )


def fold(commits: Iterable[Commit], start: State | None = None) -> State:
    """The state that commits lead to, from `start` or the empty state. Raises UnreadableCommit."""
    folding = Fold(start or State())
    for commit in commits:
        folding.add(commit)
    return folding.state()


def state_after(state: State, actions: Sequence[Action]) -> State:
    """What these actions would make of a state, without a commit."""
    if not actions:
        return state
    return fold([Commit(generation=state.generation + 1, id="", time="", actions=tuple(actions))], state)


def rollback_target(task: TaskState, alias: str, to: int | None = None) -> int | None:
    """Where a rollback leads: the alias's newest earlier version that is not retired (and is `to`), or None."""
    *earlier, current = task.aliases[alias]
    for version in reversed(earlier):
        if version != current and not task.versions[version].retired and to in (None, version):
            return version
    return None


def _apply_group(group: GroupState, action: GroupAction, commit: Commit) -> GroupState:
    try:
        return apply_group(group, action)
    except ValueError as error:
        where = f"its {action.type} of {group.name!r}: {error}"
        raise UnreadableCommit(log_path(commit.generation), where) from None


def _apply(task: TaskState, action: TaskAction, commit: Commit) -> TaskState:
    try:
        match action:
            case Publish():
                return _publish(task, action, commit)
            case SetAlias():
                return _set_alias(task, action)
            case SetRoute():
                return _set_route(task, action, commit.generation)
            case Rollback():
                return _roll_back(task, action)
            case Retire():
                return _retire(task, action)
            case DeleteTask():
                return _delete(task)
    except ValueError as error:
        raise UnreadableCommit(log_path(commit.generation), f"its {action.type} of {task.name!r}: {error}") from None


def _publish(task: TaskState, action: Publish, commit: Commit) -> TaskState:
    if action.version != task.last_version + 1:
        raise ValueError(f"version {action.version} cannot follow version {task.last_version}")
    entry = VersionState(
        version=action.version,
        manifest_sha256=action.manifest_sha256,
        kind=action.kind,
        backbone=action.backbone,
        run_id=action.run_id,
        published_at=commit.time,
        author=commit.author,
        message=commit.message,
        generation=commit.generation,
        untrained=action.untrained,
    )
    return replace(task, versions={**task.versions, action.version: entry}, deleted=False)


def _set_alias(task: TaskState, action: SetAlias) -> TaskState:
    if action.version not in task.live:
        raise ValueError(f"it has no version {action.version}")
    stack = task.aliases.get(action.alias, ())
    if stack[-1:] != (action.version,):
        stack = (*stack, action.version)[-ALIAS_MEMORY:]
    return _with_alias(task, action.alias, stack)


def _set_route(task: TaskState, action: SetRoute, generation: int) -> TaskState:
    if action.alias not in task.aliases:
        raise ValueError(f"it has no alias {action.alias}")
    if named := action.route.versions - set(task.live):
        raise ValueError(f"it has no version {min(named)}")
    if task.at(action.alias) in action.route.versions:
        raise ValueError(f"version {task.at(action.alias)} is {action.alias}'s own")
    alias, route = action.alias, action.route
    ended = _without(task.ended, alias) if route.shares else task.ended
    if task.route(alias).shares and not route.shares:
        ended = {**task.ended, alias: generation}
    if route.is_plain:
        return replace(_with_alias(task, alias, task.aliases[alias]), ended=ended)
    return replace(task, routes={**task.routes, alias: route}, routed={**task.routed, alias: generation}, ended=ended)


def _roll_back(task: TaskState, action: Rollback) -> TaskState:
    stack = task.aliases.get(action.alias, (0,))
    if stack[-1] != action.version_from or rollback_target(task, action.alias, action.version_to) is None:
        raise ValueError(f"{action.alias} cannot go from version {action.version_from} to {action.version_to}")
    last = max(index for index, version in enumerate(stack[:-1]) if version == action.version_to)
    return _with_alias(task, action.alias, stack[: last + 1])


def _retire(task: TaskState, action: Retire) -> TaskState:
    if action.version not in task.versions or action.version in task.used:
        raise ValueError(f"version {action.version} does not exist or is in use")
    entry = replace(task.versions[action.version], retired=True)
    return replace(task, versions={**task.versions, action.version: entry})


def _delete(task: TaskState) -> TaskState:
    if not task.versions:
        raise ValueError("there is no such task")
    versions = {number: replace(entry, retired=True) for number, entry in task.versions.items()}
    return replace(task, versions=versions, aliases={}, routes={}, routed={}, ended={}, deleted=True)


def _with_alias(task: TaskState, alias: str, stack: tuple[int, ...]) -> TaskState:
    """The task with these versions for the alias, and a plain route."""
    return replace(
        task,
        aliases={**task.aliases, alias: stack},
        routes=_without(task.routes, alias),
        routed=_without(task.routed, alias),
        ended=_without(task.ended, alias),
    )


def _without(table: Mapping[str, Kept], alias: str) -> dict[str, Kept]:
    return {name: value for name, value in table.items() if name != alias}
