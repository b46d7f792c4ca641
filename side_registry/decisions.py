"""What each verb does: pure functions from the newest state to the actions of the next commit.

A writer that lost a race decides again. No actions: the state is as wanted already.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from side_registry.documents import explain
from side_registry.errors import (
    InvalidGroup,
    InvalidRoute,
    NothingToRollBack,
    RegistryError,
    RollbackUnclear,
    RouteChanged,
    VersionInUse,
)
from side_registry.groups import GroupState, check_members
from side_registry.groups import rollback_target as group_rollback_target
from side_registry.log import (
    MAX_MEMBERS,
    Action,
    DeleteGroup,
    DeleteTask,
    Publish,
    Retire,
    Rollback,
    RollbackGroup,
    SetAlias,
    SetGroup,
    SetRoute,
)
from side_registry.manifest import Manifest
from side_registry.route import PLAIN, Route
from side_registry.specs.task import PRODUCTION, TaskRef, check_group_name
from side_registry.state import State, TaskState, rollback_target


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What a publish did."""

    task: str
    version: int
    generation: int = 0
    aliases: Mapping[str, int]
    """Aliases that this publish moved, to the version."""
    already: bool
    """The same manifest was published before, as this version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolled:
    """What a rollback did."""

    task: str
    alias: str
    version_from: int
    """Where the alias was; the version with the largest share when shares were taken away."""
    version_to: int
    canary_ended: bool = False
    """The alias stayed at `version_to`, and the shares of its traffic were taken away."""
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupChanged:
    """What a change of a group did."""

    group: str
    version: int
    version_from: int
    """Its version before; 0: there was no such group."""
    members: tuple[str, ...]
    """References of its tasks now."""
    generation: int = 0


def publish(state: State, manifest: Manifest, digest: str, alias: str | None) -> tuple[Sequence[Action], Published]:
    """Add a version. A task's first one becomes production, or `alias`; later ones move no alias but `alias`."""
    task = state.tasks.get(manifest.task) or TaskState(name=manifest.task, deleted=True)
    same = next((number for number in task.live if task.versions[number].manifest_sha256 == digest), None)
    version = same or task.last_version + 1
    wanted = PRODUCTION if alias is None and task.deleted else alias
    moves = _moves(task, wanted, version) if wanted else []
    published = Published(
        task=task.name,
        version=version,
        aliases={move.alias: move.version for move in moves},
        already=same is not None,
    )
    return [*([] if same else [publish_action(manifest, version, digest)]), *moves], published


def set_alias(state: State, task: str, alias: str, version: int) -> Sequence[Action]:
    """Point an alias to a version; its route becomes plain."""
    current = state.task(task)
    return _moves(current, alias, current.live_entry(version).version, ends_route=True)


def set_route(
    state: State, task: str, alias: str, route: Route, version: int | None, seen: Route | None = None
) -> Sequence[Action]:
    """With `version` the alias moves there first; with `seen` the route must still be that, unless it is `route`."""
    current = state.task(task)
    route = checked_route(task, alias, route)
    own_entry = current.entry(current.at(alias)) if version is None else current.live_entry(version)
    moves = _moves(current, alias, own_entry.version)
    if seen not in (None, current.route(alias)) and (moves or route != current.route(alias)):
        raise RouteChanged(task, alias)
    for number in sorted(route.versions):
        other = current.live_entry(number)
        if number == own_entry.version:
            raise InvalidRoute(task, alias, f"version {number} is its main version, which gets the rest of the traffic")
        if other.kind != own_entry.kind:
            why = f"version {number} is {other.kind}, its own version {own_entry.version} {own_entry.kind}"
            raise InvalidRoute(task, alias, why)
    before = PLAIN if moves else current.route(alias)
    return [*moves, *([] if route == before else [SetRoute(task=task, alias=alias, route=route)])]


def end_route(
    state: State, task: str, alias: str, seen: Route, since: int | None = None
) -> tuple[Sequence[Action], bool]:
    """Take all shares away. False, and no action, when the route is no longer what its judge saw."""
    current = state.live.get(task)
    if current is None or current.route(alias) != seen or since not in (None, current.routed.get(alias, 0)):
        return [], False
    rest = Route(shadows=seen.shadows)
    return [] if rest == seen else [SetRoute(task=task, alias=alias, route=rest)], True


def checked_route(task: str, alias: str, route: Route | Mapping[str, object]) -> Route:
    """A route, or the fields of one, as a valid route.

    Raises:
        InvalidRoute: a value is wrong, or this program does not know a field (it would be stored, and ignored).
    """
    fields = route.model_dump() if isinstance(route, Route) else route
    try:
        checked = Route.model_validate(fields)
    except ValidationError as error:
        raise InvalidRoute(task, alias, explain(error)) from None
    for part in filter(None, (checked, checked.bounds)):
        for unknown in part.model_extra or ():
            raise InvalidRoute(task, alias, f"unknown field {unknown!r}; use {', '.join(type(part).model_fields)}")
    return checked


def rollback(state: State, task: str, alias: str, to: int | None) -> tuple[Sequence[Action], Rolled]:
    """Undo the alias's newest change: its shares, if it has any, else its last move.

    Just after shares were taken away, by a server or another person, the caller must name the last move with `to`: the
    shares may have been meant.
    """
    current = state.task(task)
    own_version = current.at(alias)
    if to is not None:
        current.live_entry(to)
    shares = current.route(alias).shares
    if shares and to in (None, own_version):
        largest = max(shares, key=lambda version: (shares[version], version))
        rolled = Rolled(task=task, alias=alias, version_from=largest, version_to=own_version, canary_ended=True)
        return [SetRoute(task=task, alias=alias, route=PLAIN)], rolled
    target = rollback_target(current, alias, to)
    if target is None:
        raise NothingToRollBack(task, alias, own_version, to)
    if to is None and alias in current.ended:
        raise RollbackUnclear(task, alias, own_version, current.ended[alias], target)
    rolled = Rolled(task=task, alias=alias, version_from=own_version, version_to=target)
    return [Rollback(task=task, alias=alias, version_from=own_version, version_to=target)], rolled


def retire(state: State, task: str, version: int) -> Sequence[Action]:
    """Take a version out of use, if no alias and no route needs it."""
    current = state.task(task)
    if current.entry(version).retired:
        return []
    if version in current.used:
        aliases = tuple(alias for alias, number in current.serving.items() if number == version)
        routed = tuple(alias for alias, route in current.routes.items() if version in route.versions)
        raise VersionInUse(task, version, aliases, routed)
    holding = tuple(name for name, group in state.live_groups.items() if (task, version) in group.current.pinned)
    if holding:
        raise VersionInUse(task, version, (), groups=holding)
    return [Retire(task=task, version=version)]


def delete_task(state: State, task: str) -> Sequence[Action]:
    """Take a task out of use."""
    return [DeleteTask(task=state.task(task).name)]


def set_group(state: State, group: str, members: Sequence[str]) -> tuple[Sequence[Action], GroupChanged]:
    """Give a group these tasks, or make it. Each of them must exist."""
    check_group_name(group)
    if len(members) > MAX_MEMBERS:
        raise InvalidGroup(group, f"it would have {len(members)} tasks, at most {MAX_MEMBERS} are allowed")
    for ref in check_members(group, members):
        state.resolve(ref)
    known = state.groups.get(group) or GroupState(name=group)
    wanted = tuple(members)
    if known.past and known.current.members == wanted:
        version = known.current.version
        return [], GroupChanged(group=group, version=version, version_from=version, members=wanted)
    version = known.last_version + 1
    before = known.current.version if known.past else 0
    changed = GroupChanged(group=group, version=version, version_from=before, members=wanted)
    return [SetGroup(group=group, version=version, members=wanted)], changed


def rollback_group(state: State, group: str, to: int | None) -> tuple[Sequence[Action], GroupChanged]:
    """Give a group the tasks of its version before, or of `to`, skipping those with tasks that cannot be used."""
    known = state.group(group)
    current = known.current.version
    usable = [one.version for one in known.past if all(_can_be_used(state, ref) for ref in one.refs)]
    target = group_rollback_target(known, usable, to)
    changed = GroupChanged(group=group, version=target.version, version_from=current, members=target.members)
    return [RollbackGroup(group=group, version_from=current, version_to=target.version)], changed


def delete_group(state: State, group: str) -> Sequence[Action]:
    """Remove a group; its tasks stay."""
    return [DeleteGroup(group=state.group(group).name)]


def _can_be_used(state: State, ref: TaskRef) -> bool:
    try:
        state.resolve(ref)
    except RegistryError:
        return False
    return True


def publish_action(manifest: Manifest, version: int, digest: str) -> Publish:
    """The action that makes a manifest, stored under its digest, a version."""
    return Publish(
        task=manifest.task,
        version=version,
        manifest_sha256=digest,
        kind=manifest.spec.kind,
        backbone=manifest.backbone.fingerprint,
        run_id=manifest.run_id,
        untrained=manifest.is_untrained,
    )


def _moves(task: TaskState, alias: str, version: int, *, ends_route: bool = False) -> list[SetAlias]:
    if task.serving.get(alias) == version and not (ends_route and alias in task.routes):
        return []
    return [SetAlias(task=task.name, alias=alias, version=version)]
