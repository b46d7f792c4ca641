"""Task groups in exports: which an export of a task lists, and what an import makes of them.

Versions have other numbers in another registry, so a member that names one is listed with its manifest, and means the
version with that manifest in the target.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pydantic import Field, model_validator

from side_registry.documents import Document
from side_registry.errors import RegistryError
from side_registry.groups import GROUP_MEMORY, GroupState, check_members
from side_registry.log import MAX_MEMBERS, Reference, SetGroup, TaskName
from side_registry.manifest import Digest
from side_registry.specs.task import TaskRef
from side_registry.state import State


class ExportedMember(Document):
    """A task of a group."""

    ref: Reference
    """In the registry that it came from."""
    manifest_sha256: Digest | None = Field(default=None, exclude_if=lambda value: value is None)
    """Of the version that it names."""


class ExportedGroup(Document):
    """A group: the tasks that it had in each of its versions."""

    name: TaskName
    versions: tuple[tuple[ExportedMember, ...], ...] = Field(min_length=1, max_length=GROUP_MEMORY)
    """Oldest first; the last is the current one."""

    @model_validator(mode="after")
    def _check(self) -> "ExportedGroup":
        for members in self.versions:
            if len(members) > MAX_MEMBERS:
                raise ValueError(f"group {self.name} has {len(members)} tasks, at most {MAX_MEMBERS} are allowed")
            try:
                check_members(self.name, [member.ref for member in members])
            except RegistryError as error:
                raise ValueError(str(error)) from None
            if any(TaskRef.parse(member.ref).version and not member.manifest_sha256 for member in members):
                raise ValueError(f"group {self.name} names a version without its manifest")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedGroups:
    """What an import did with the groups of an export."""

    actions: tuple[SetGroup, ...] = ()
    changed: Mapping[str, int] = field(default_factory=dict)
    """The new current version of each group that changed."""
    waiting: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Groups that were not made, and the exported references of those of their tasks that the target lacks."""


def groups_of(state: State, task: str) -> tuple[ExportedGroup, ...]:
    """The groups that have the task now."""

    def member(ref: TaskRef) -> ExportedMember:
        if ref.version is None:
            return ExportedMember(ref=str(ref))
        digest = state.tasks[ref.task].versions[ref.version].manifest_sha256
        return ExportedMember(ref=str(ref), manifest_sha256=digest)

    return tuple(
        ExportedGroup(name=name, versions=tuple(tuple(map(member, version.refs)) for version in group.past))
        for name, group in state.live_groups.items()
        if any(ref.task == task for ref in group.current.refs)
    )


def import_groups(state: State, groups: tuple[ExportedGroup, ...], *, replaces: bool) -> ImportedGroups:
    """Make each group that the target lacks, with those of its versions whose tasks the target has.

    A group whose current tasks are not all there is not made.

    Args:
        state: the target's, with all else that the import does.
        replaces: a group that the target has gets the exported group's current tasks.
    """
    done = ImportedGroups()
    for group in groups:
        known = state.groups.get(group.name) or GroupState(name=group.name)
        if known.past and not replaces:
            continue
        done = _import_group(state, group, known, done)
    return done


def _import_group(state: State, group: ExportedGroup, known: GroupState, done: ImportedGroups) -> ImportedGroups:
    local = [[_local(state, member) for member in members] for members in group.versions]
    if lacking := tuple(member.ref for member, ref in zip(group.versions[-1], local[-1], strict=True) if ref is None):
        return replace(done, waiting={**done.waiting, group.name: lacking})
    wanted = [tuple(ref for ref in refs if ref) for refs in local if None not in refs]
    if known.past:
        wanted = [] if known.current.members == wanted[-1] else wanted[-1:]
    actions = [
        SetGroup(group=group.name, version=known.last_version + 1 + index, members=members)
        for index, members in enumerate(wanted)
    ]
    if not actions:
        return done
    changed = {**done.changed, group.name: actions[-1].version}
    return replace(done, actions=(*done.actions, *actions), changed=changed)


def _local(state: State, member: ExportedMember) -> str | None:
    """The member's reference in the target; None: the target has no such task, version or alias."""
    ref = TaskRef.parse(member.ref)
    task = state.live.get(ref.task)
    if task is None:
        return None
    if ref.version is None:
        try:
            state.resolve(ref)
        except RegistryError:
            return None
        return member.ref
    same = (number for number in task.live if task.versions[number].manifest_sha256 == member.manifest_sha256)
    return next((str(replace(ref, version=number)) for number in same), None)
