"""Task groups: a name for several tasks that are asked together, with a version for each list of tasks that it had.

A member is a task's reference: `sst2` follows production, `sst2@canary` another alias, `sst2:7` is that version. Pure
functions of one group; what they need of the tasks is asked by decisions.py.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from side_registry.errors import InvalidGroup, NoEarlierGroup, UnknownGroup
from side_registry.log import DeleteGroup, GroupAction, RollbackGroup, SetGroup
from side_registry.specs.task import TaskRef

GROUP_MEMORY = 64
"""Versions of a group's past that are kept: a rollback goes no further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupVersion:
    """The tasks of a group, as one change made them."""

    version: int
    members: tuple[str, ...]
    """References, in the order in which they are answered."""

    @property
    def refs(self) -> tuple[TaskRef, ...]:
        """The members, parsed."""
        return tuple(map(TaskRef.parse, self.members))

    @property
    def pinned(self) -> frozenset[tuple[str, int]]:
        """Tasks and versions of the members that name a version."""
        return frozenset((ref.task, ref.version) for ref in self.refs if ref.version is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupState:
    """One group. When it is deleted its past is empty, and its next version goes on counting."""

    name: str
    past: tuple[GroupVersion, ...] = ()
    """Oldest first; the last is the current one."""
    last_version: int = 0
    """Highest number of a version so far."""

    @property
    def current(self) -> GroupVersion:
        """The tasks that it has now. Raises UnknownGroup: it is deleted."""
        if not self.past:
            raise UnknownGroup(self.name)
        return self.past[-1]


def check_members(group: str, members: Collection[str]) -> tuple[TaskRef, ...]:
    """The parsed members of a group.

    Raises:
        InvalidGroup: there is none, or a task is there twice.
        InvalidName: one is no reference.
    """
    if not members:
        raise InvalidGroup(group, "it would have no task; name at least one, or delete the group")
    refs = tuple(map(TaskRef.parse, members))
    names = [ref.task for ref in refs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidGroup(group, f"it would have task {twice!r} twice; name each task once")
    return refs


def rollback_target(group: GroupState, usable: Collection[int], to: int | None) -> GroupVersion:
    """The version to go back to: the newest earlier one that can be used, or `to`.

    Args:
        usable: versions of its past whose members can all be used.
    Raises:
        NoEarlierGroup: there is none.
    """
    current = group.current
    for earlier in reversed(group.past[:-1]):
        if earlier.version in usable and to in (None, earlier.version):
            return earlier
    raise NoEarlierGroup(group.name, current.version, to)


def apply_group(group: GroupState, action: GroupAction) -> GroupState:
    """The group after an action. Raises ValueError: it does not follow from what came before."""
    match action:
        case SetGroup():
            if action.version != group.last_version + 1:
                raise ValueError(f"version {action.version} cannot follow version {group.last_version}")
            made = GroupVersion(version=action.version, members=action.members)
            return replace(group, past=(*group.past, made)[-GROUP_MEMORY:], last_version=action.version)
        case RollbackGroup():
            numbers = [one.version for one in group.past]
            if action.version_to not in numbers[:-1] or numbers[-1] != action.version_from:
                raise ValueError(f"it cannot go from version {action.version_from} to {action.version_to}")
            return replace(group, past=group.past[: numbers.index(action.version_to) + 1])
        case DeleteGroup():
            if not group.past:
                raise ValueError("there is no such group")
            return replace(group, past=())
