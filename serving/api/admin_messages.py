"""The server's and the registry's records as messages of `sidecast.v1.Admin`, and back. Pure functions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from protos import sidecast_pb2 as pb
from serving.api.native import read_ref, write_ref
from serving.engine import Resident
from serving.errors import InvalidInput
from serving.metrics import Answered
from serving.rollout import Compared, Disagreement, RolledBack
from serving.versions import PoolState
from side_registry import GroupChanged, Published
from side_registry.groups import GroupVersion
from side_registry.log import (
    Action,
    Commit,
    DeleteGroup,
    Publish,
    Retire,
    Rollback,
    RollbackGroup,
    SetAlias,
    SetGroup,
    SetRoute,
)
from side_registry.route import Route
from side_registry.servers import Announced
from side_registry.specs.task import PRODUCTION, TaskRef, TaskSpec
from side_registry.specs.task_kinds import KINDS
from side_registry.state import TaskState, VersionState

Written = TypeVar("Written", bound=Message)
GroupResponse = TypeVar("GroupResponse", pb.SetGroupResponse, pb.RollbackGroupResponse)

MAX_ROUTE_VERSIONS = 1000

Served = tuple[int, Route | None]
"""The version that serves an alias, and the route that this server follows for it."""


@dataclass(frozen=True, slots=True)
class Watched:
    """The part of the pool's state that Watch sends. Keeps no side network alive."""

    generations: pb.Generations
    tasks: Mapping[str, TaskState]
    aliases: Mapping[tuple[str, str], int]
    routes: Mapping[tuple[str, str], Route]

    @classmethod
    def of(cls, state: PoolState) -> "Watched":
        """The part of `state` that Watch sends."""
        return cls(write_generations(state), state.tasks, state.aliases, state.routes)


class Change(TypedDict):
    """Who changes the registry, and why: keyword arguments of the registry's verbs."""

    author: str | None
    message: str


def read_change(change: pb.Change) -> Change:
    """Who changes the registry, and why. Without an author the registry names this process."""
    return Change(author=change.author or None, message=change.message)


def write_published(published: Published) -> pb.PublishResponse:
    """The outcome of a publish."""
    return _write(pb.PublishResponse, published)


def write_generations(state: PoolState) -> pb.Generations:
    """The registry's generations, wanted and served. Both are 0 until the server has read its registry."""
    return pb.Generations(wanted=max(state.wanted, 0), served=max(state.generation, 0))


def write_task(state: PoolState, name: str) -> pb.TaskInfo:
    """A task with its aliases, routes and versions. It has no spec while no version of it is resident.

    Raises:
        UnknownTask: the registry has no such task.
    """
    task = state.task_state(name)
    info = pb.TaskInfo(task=name)
    if spec := _spec(state, task):
        info.spec.CopyFrom(write_spec(spec))
    for alias, version in sorted(task.serving.items()):
        serving = state.aliases.get((name, alias), 0)
        info.aliases.add(alias=alias, route=write_route(task.route(alias), version), serving=serving)
    info.versions.extend(_write_version(state, name, version) for _, version in sorted(task.versions.items()))
    return info


def write_spec(spec: TaskSpec) -> pb.TaskSpec:
    """A task's spec."""
    return _write(pb.TaskSpec, spec, generation=_write_decoding(spec))


def _write_decoding(spec: TaskSpec) -> pb.Generation | None:
    if not KINDS[spec.kind].makes_text:
        return None
    settings = spec.generation.settings
    settings["early_stopping"] = str(settings["early_stopping"]).lower()
    return pb.Generation(**settings)


def read_member(ref: pb.TaskRef) -> str:
    """A task of a group, as the registry writes it."""
    return str(read_ref(ref))


def write_group(name: str, group: GroupVersion) -> pb.Group:
    """A group and its tasks."""
    return pb.Group(group=name, version=group.version, tasks=map(_write_member, group.members))


def write_group_change(kind: type[GroupResponse], changed: GroupChanged) -> GroupResponse:
    """The outcome of a change of a group."""
    group = pb.Group(group=changed.group, version=changed.version, tasks=map(_write_member, changed.members))
    return kind(group=group, generation=changed.generation, version_from=changed.version_from)


def _write_member(member: str) -> pb.TaskRef:
    return write_ref(TaskRef.parse(member))


def write_commit(commit: Commit, task: str, group: str = "") -> pb.Commit:
    """A commit of the registry's log, with its actions about `task` or `group`; "" for both: with all of them."""
    name = task or group
    return pb.Commit(
        generation=commit.generation,
        time=_timestamp(commit.time),
        change=pb.Change(author=commit.author, message=commit.message),
        actions=[
            _write_action(action)
            for action in commit.actions
            if name == "" or (getattr(action, "group" if group else "task", None) == name)
        ],
    )


def write_event(before: Watched, after: Watched) -> pb.WatchEvent:
    """What changed between two states of the pool."""
    if after.tasks is before.tasks and after.aliases is before.aliases and after.routes is before.routes:
        return pb.WatchEvent(generations=after.generations)
    old = _served(before)
    new = _served(after)
    changed = [_write_served(task, new.get(task, {})) for task in sorted(old | new) if old.get(task) != new.get(task)]
    return pb.WatchEvent(generations=after.generations, changed=changed)


def _served(watched: Watched) -> dict[str, dict[str, Served]]:
    """Task to alias to what serves it."""
    served: dict[str, dict[str, Served]] = {task: {} for task in watched.tasks}
    for (task, alias), version in watched.aliases.items():
        served.setdefault(task, {})[alias] = version, watched.routes.get((task, alias))
    return served


def _write_served(task: str, served: Mapping[str, Served]) -> pb.Served:
    routes = {alias: write_route(route, version) for alias, (version, route) in served.items() if route}
    return pb.Served(task=task, serving={alias: version for alias, (version, _) in served.items()}, routes=routes)


def _spec(state: PoolState, task: TaskState) -> TaskSpec | None:
    """The spec of the version that serves production, else of the newest resident version."""
    candidates = [state.aliases.get((task.name, PRODUCTION), 0), *reversed(task.live)]
    residents = (state.residents.get((task.name, version)) for version in candidates)
    return next((resident.spec for resident in residents if resident), None)


def _write_version(state: PoolState, task: str, version: VersionState) -> pb.Version:
    failure = state.failed.get((task, version.version))
    return _write(
        pb.Version,
        version,
        published_at=_timestamp(version.published_at),
        resident=(task, version.version) in state.residents,
        failure=failure.why if failure else "",
    )


def _write_action(action: Action) -> pb.Action:
    match action:
        case SetAlias():
            return pb.Action(verb=action.type, task=action.task, version=action.version, alias=action.alias)
        case SetRoute():
            route = write_route(action.route)
            return pb.Action(verb=action.type, task=action.task, alias=action.alias, route=route)
        case Rollback():
            return pb.Action(verb=action.type, task=action.task, version=action.version_to, alias=action.alias)
        case Publish():
            return pb.Action(verb=action.type, task=action.task, version=action.version, run_id=action.run_id)
        case Retire():
            return pb.Action(verb=action.type, task=action.task, version=action.version)
        case SetGroup():
            return pb.Action(verb=action.type, group=action.group, version=action.version, members=action.members)
        case RollbackGroup():
            return pb.Action(verb=action.type, group=action.group, version=action.version_to)
        case DeleteGroup():
            return pb.Action(verb=action.type, group=action.group)
        case _:
            return pb.Action(verb=action.type, task=action.task)


def _timestamp(text: str) -> Timestamp | None:
    """The time of a commit as its writer wrote it, in ISO 8601; None if it is no time."""
    timestamp = Timestamp()
    try:
        timestamp.FromJsonString(text)
    except ValueError:
        return None
    return timestamp


def read_route(route: pb.Route) -> dict[str, Any]:
    """The fields of a registry's `Route`, not validated yet.

    Raises:
        InvalidInput: a version has two shares, or there are too many versions.
    """
    for name, versions in (("shares", route.shares), ("shadows", route.shadows)):
        if len(versions) > MAX_ROUTE_VERSIONS:
            raise InvalidInput(
                f"route.{name}", f"has {len(versions)} versions, at most {MAX_ROUTE_VERSIONS} make a route"
            )
    shares = {share.version: share.share for share in route.shares}
    if len(shares) < len(route.shares):
        raise InvalidInput("route.shares", "must name each version once")
    fields: dict[str, Any] = {"shares": shares, "shadows": tuple(route.shadows)}
    if route.HasField("bounds"):
        fields["bounds"] = {field.name: value for field, value in route.bounds.ListFields()}
    return fields


def write_route(route: Route, version: int = 0) -> pb.Route:
    """An alias's route. `version` is the alias's main version; 0: leave it unset."""
    message = pb.Route(shadows=route.shadows)
    if version:
        message.version = version
    for other, share in sorted(route.shares.items()):
        message.shares.add(version=other, share=share)
    if route.bounds:
        message.bounds.CopyFrom(_write(pb.Route.Bounds, route.bounds))
    return message


def write_comparisons(compared: Compared, rolled_back: RolledBack | None, limit: int) -> pb.GetComparisonResponse:
    """The statistics of an alias's versions, with the newest `limit` disagreements."""
    response = _write(
        pb.GetComparisonResponse,
        compared,
        comparisons=[_write(pb.Comparison, comparison) for comparison in compared.comparisons],
        disagreements=[_write_disagreement(disagreement) for disagreement in compared.disagreements[:limit]],
        rolled_back=None,
    )
    if rolled_back is not None:
        response.rolled_back.CopyFrom(_write_rolled_back(rolled_back, limit))
    return response


def _write_rolled_back(rolled_back: RolledBack, limit: int) -> pb.RolledBack:
    return pb.RolledBack(
        why=rolled_back.why,
        generation=rolled_back.generation,
        time=_time(rolled_back.time),
        route=write_route(rolled_back.routed.route, rolled_back.routed.version),
        comparisons=[_write(pb.Comparison, comparison) for comparison in rolled_back.comparisons],
        disagreements=[_write_disagreement(disagreement) for disagreement in rolled_back.disagreements[:limit]],
    )


def _write_disagreement(disagreement: Disagreement) -> pb.Disagreement:
    return _write(pb.Disagreement, disagreement, time=_time(disagreement.time))


def _time(seconds: float) -> Timestamp:
    time = Timestamp()
    time.FromNanoseconds(int(seconds * 1e9))
    return time


def write_residents(
    server: Announced,
    others: Sequence[Announced],
    device: str,
    residents: Sequence[Resident],
    answered: Callable[[str, int], Answered],
) -> pb.ListResidentsResponse:
    """The versions that a server has loaded, with what they answered."""
    return pb.ListResidentsResponse(
        server=_write(pb.ServerInfo, server),
        device=device,
        residents=[_write_resident(one, answered(one.task, one.version)) for one in residents],
        others=[_write(pb.ServerInfo, other) for other in others],
    )


def _write_resident(resident: Resident, answered: Answered) -> pb.Resident:
    message = _write(pb.Resident, resident, since=_time(resident.since), last_asked=None, requests=answered.requests)
    if answered.at:
        message.last_asked.CopyFrom(_time(answered.at))
    return message


def write_awaited(generation: int, servers: Sequence[Announced]) -> pb.AwaitGenerationResponse:
    """How far the servers that are alive have come; `served` when all of them serve the generation."""
    return pb.AwaitGenerationResponse(
        generation=generation,
        served=all(server.generation >= generation for server in servers),
        servers=[_write(pb.ServerInfo, server) for server in servers],
    )


def _write(kind: type[Written], record: object, /, **values: Any) -> Written:
    """A message with the record's attributes of the same names, except the fields in `values`."""
    names = [field.name for field in kind.DESCRIPTOR.fields if field.name not in values]
    return kind(**{name: getattr(record, name) for name in names}, **values)
