"""What each verb does to a state: pure functions from the newest state to the actions that follow from it.

A writer that lost a race decides again. No actions mean that it is so already.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from side_registry.documents import explain
from side_registry.errors import InvalidRoute, NothingToRollBack, RollbackUnclear, RouteChanged, VersionInUse
from side_registry.log import Action, DeleteTask, Publish, Retire, Rollback, SetAlias, SetRoute
from side_registry.manifest import Manifest
from side_registry.route import PLAIN, Route
from side_registry.state import State, TaskState, rollback_target
from side_registry.task import PRODUCTION


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    task: str
    version: int
    generation: int = 0
    aliases: Mapping[str, int]
    """What this publish moved: alias to version."""
    already: bool
    """The same manifest was published before, as this version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolled:
    task: str
    alias: str
    version_from: int
    """Where the alias was; the version with the largest share when shares were taken away."""
    version_to: int
    canary_ended: bool = False
    """The alias stayed at `version_to`, and the shares of its traffic were taken away."""
    generation: int = 0


def publish(state: State, manifest: Manifest, digest: str, alias: str | None) -> tuple[Sequence[Action], Published]:
    """A task's first version becomes production unless `alias` says otherwise; later ones move no other alias."""
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
    return [*([] if same else [_publish(manifest, version, digest)]), *moves], published


def set_alias(state: State, task: str, alias: str, version: int) -> Sequence[Action]:
    found = state.task(task)
    return _moves(found, alias, found.live_entry(version).version, ends_route=True)


def set_route(
    state: State, task: str, alias: str, route: Route, version: int | None, seen: Route | None = None
) -> Sequence[Action]:
    """With `version` the alias moves there first; with `seen` the route must still be that, or be so already."""
    found, route = state.task(task), checked_route(task, alias, route)
    own = found.at(alias) if version is None else found.live_entry(version).version
    moves, current = _moves(found, alias, own), found.route(alias)
    if seen not in (None, current) and (moves or route != current):
        raise RouteChanged(task, alias)
    for named in sorted(route.versions):
        entry, owns = found.live_entry(named), found.entry(own)
        if named == own:
            raise InvalidRoute(task, alias, f"version {own} is its own, which gets what the shares leave")
        if entry.kind != owns.kind:
            raise InvalidRoute(task, alias, f"version {named} is {entry.kind}, its own version {own} {owns.kind}")
    before = PLAIN if moves else current
    return [*moves, *([] if route == before else [SetRoute(task=task, alias=alias, route=route)])]


def end_route(
    state: State, task: str, alias: str, seen: Route, since: int | None = None
) -> tuple[Sequence[Action], bool]:
    """Take all shares away, unless the route is no longer what its judge saw: then False."""
    found = state.live.get(task)
    if found is None or found.route(alias) != seen or since not in (None, found.routed.get(alias, 0)):
        return [], False
    rest = Route(shadows=seen.shadows)
    return [] if rest == seen else [SetRoute(task=task, alias=alias, route=rest)], True


def checked_route(task: str, alias: str, route: Route | Mapping[str, object]) -> Route:
    """A route, or the fields of one, as a valid route.

    Raises:
        InvalidRoute: with its faults. A field that this program does not know is one: it would be stored, and ignored.
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
    """The newest thing is undone: shares, if the alias gives any away, else its last move.

    Right after shares were taken away, by a server or another person, its last move must be named: who asks may have
    meant the shares.
    """
    found = state.task(task)
    current = found.at(alias)
    if to is not None:
        found.live_entry(to)
    shares = found.route(alias).shares
    if shares and to in (None, current):
        largest = max(shares, key=lambda version: (shares[version], version))
        rolled = Rolled(task=task, alias=alias, version_from=largest, version_to=current, canary_ended=True)
        return [SetRoute(task=task, alias=alias, route=PLAIN)], rolled
    target = rollback_target(found, alias, to)
    if target is None:
        raise NothingToRollBack(task, alias, current, to)
    if to is None and alias in found.ended:
        raise RollbackUnclear(task, alias, current, found.ended[alias], target)
    rolled = Rolled(task=task, alias=alias, version_from=current, version_to=target)
    return [Rollback(task=task, alias=alias, version_from=current, version_to=target)], rolled


def retire(state: State, task: str, version: int) -> Sequence[Action]:
    found = state.task(task)
    if found.entry(version).retired:
        return []
    if version in found.used:
        pointing = [alias for alias, own in found.serving.items() if own == version]
        routing = [alias for alias, route in found.routes.items() if version in route.versions]
        raise VersionInUse(task, version, pointing, routing)
    return [Retire(task=task, version=version)]


def delete_task(state: State, task: str) -> Sequence[Action]:
    return [DeleteTask(task=state.task(task).name)]


def _publish(manifest: Manifest, version: int, digest: str) -> Publish:
    return Publish(
        task=manifest.task,
        version=version,
        manifest_sha256=digest,
        kind=manifest.spec.kind,
        backbone=manifest.backbone.fingerprint,
        run_id=manifest.run_id,
    )


def _moves(task: TaskState, alias: str, version: int, *, ends_route: bool = False) -> list[SetAlias]:
    if task.serving.get(alias) == version and not (ends_route and alias in task.routes):
        return []
    return [SetAlias(task=task.name, alias=alias, version=version)]
