"""What the server knows about tasks, and the registry's commits, as messages of `sidecast.v1.Admin`. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from google.protobuf.timestamp_pb2 import Timestamp

from protos import sidecast_pb2 as pb
from serving.errors import InvalidInput
from serving.rollout import Compared, Comparison, Disagreement
from serving.versions import PoolState
from side_registry import Published
from side_registry.log import Action, Commit, Publish, Retire, Rollback, SetAlias, SetRoute
from side_registry.route import Bounds, Route
from side_registry.servers import Announced
from side_registry.state import TaskState, VersionState
from side_registry.task import PRODUCTION, TaskSpec
from side_registry.task_kinds import KINDS

Served = tuple[int, Route | None]
"""The version that serves an alias, and the alias's route as far as it is followed."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What is told of the pool as it changes. Holds nothing resident."""

    generations: pb.Generations
    tasks: Mapping[str, TaskState]
    aliases: Mapping[tuple[str, str], int]
    routes: Mapping[tuple[str, str], Route]

    @classmethod
    def of(cls, state: PoolState) -> "Watched":
        return cls(write_generations(state), state.tasks, state.aliases, state.routes)


class Change(TypedDict):
    author: str | None
    message: str


def read_change(change: pb.Change) -> Change:
    return Change(author=change.author or None, message=change.message)


def write_published(published: Published) -> pb.PublishResponse:
    return pb.PublishResponse(
        task=published.task,
        version=published.version,
        generation=published.generation,
        aliases=dict(published.aliases),
        already=published.already,
    )


def write_generations(state: PoolState) -> pb.Generations:
    """Before a server has seen its registry, both are 0: of an empty registry."""
    return pb.Generations(wanted=max(state.wanted, 0), served=max(state.generation, 0))


def write_task(state: PoolState, name: str) -> pb.TaskInfo:
    """A task has no spec here while no version of it is resident.

    Raises:
        UnknownTask.
    """
    task = state.task_state(name)
    info = pb.TaskInfo(task=name)
    if spec := _spec(state, task):
        info.spec.CopyFrom(write_spec(spec))
    for alias, version in sorted(task.serving.items()):
        serving = state.aliases.get((name, alias), 0)
        info.aliases.add(alias=alias, route=write_route(task.route(alias), version), serving=serving)
    info.versions.extend(_write_version(state, name, entry) for _, entry in sorted(task.versions.items()))
    return info


def write_spec(spec: TaskSpec) -> pb.TaskSpec:
    return pb.TaskSpec(
        kind=spec.kind,
        template=spec.template,
        fields=spec.fields,
        labels=spec.labels,
        low=spec.low,
        high=spec.high,
        dimensions=spec.dimensions,
        generation=_write_generation(spec),
        max_rows=spec.max_rows,
        max_chars=spec.max_chars,
        max_source_tokens=spec.max_source_tokens,
        max_new_tokens=spec.max_new_tokens,
        description=spec.description,
        target=spec.target,
        metric=spec.metric,
    )


def _write_generation(spec: TaskSpec) -> pb.Generation | None:
    if not KINDS[spec.kind].makes_text:
        return None
    settings = spec.generation.settings
    settings["early_stopping"] = str(settings["early_stopping"]).lower()
    return pb.Generation(**settings)


def write_commit(commit: Commit, task: str) -> pb.Commit:
    """With the actions about one task only, unless it is empty."""
    return pb.Commit(
        generation=commit.generation,
        time=_timestamp(commit.time),
        change=pb.Change(author=commit.author, message=commit.message),
        actions=[_write_action(action) for action in commit.actions if task in ("", action.task)],
    )


def write_event(before: Watched, after: Watched) -> pb.WatchEvent:
    """What changed from one state of the pool to another."""
    if after.tasks is before.tasks and after.aliases is before.aliases and after.routes is before.routes:
        return pb.WatchEvent(generations=after.generations)
    old, new = _served(before), _served(after)
    changed = [_write_served(task, new.get(task, {})) for task in sorted(old | new) if old.get(task) != new.get(task)]
    return pb.WatchEvent(generations=after.generations, changed=changed)


def _served(watched: Watched) -> dict[str, dict[str, Served]]:
    """Task to alias to the version that answers, and the route that is followed."""
    served: dict[str, dict[str, Served]] = {task: {} for task in watched.tasks}
    for (task, alias), version in watched.aliases.items():
        served.setdefault(task, {})[alias] = version, watched.routes.get((task, alias))
    return served


def _write_served(task: str, served: Mapping[str, Served]) -> pb.Served:
    routes = {alias: write_route(route, version) for alias, (version, route) in served.items() if route}
    return pb.Served(task=task, serving={alias: version for alias, (version, _) in served.items()}, routes=routes)


def _spec(state: PoolState, task: TaskState) -> TaskSpec | None:
    """Of the version that serves production, else of the newest resident one."""
    candidates = [state.aliases.get((task.name, PRODUCTION), 0), *reversed(task.live)]
    residents = (state.residents.get((task.name, version)) for version in candidates)
    return next((resident.spec for resident in residents if resident), None)


def _write_version(state: PoolState, name: str, entry: VersionState) -> pb.Version:
    failure = state.failed.get((name, entry.version))
    return pb.Version(
        version=entry.version,
        published_at=_timestamp(entry.published_at),
        author=entry.author,
        message=entry.message,
        run_id=entry.run_id,
        retired=entry.retired,
        resident=(name, entry.version) in state.residents,
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
        case _:
            return pb.Action(verb=action.type, task=action.task)


def _timestamp(text: str) -> Timestamp | None:
    """The writer's clock, in its words; None where they are no time."""
    timestamp = Timestamp()
    try:
        timestamp.FromJsonString(text)
    except ValueError:
        return None
    return timestamp


def read_route(route: pb.Route) -> dict[str, Any]:
    """The fields of a registry's route, for it to check.

    Raises:
        InvalidInput: a version has two shares.
    """
    shares = {each.version: each.share for each in route.shares}
    if len(shares) < len(route.shares):
        raise InvalidInput("route.shares", "must name each version once")
    fields: dict[str, Any] = {"shares": shares, "shadows": tuple(route.shadows)}
    if route.HasField("bounds"):
        fields["bounds"] = {field.name: value for field, value in route.bounds.ListFields()}
    return fields


def write_route(route: Route, version: int = 0) -> pb.Route:
    """`version` is the alias's own; 0 leaves it out."""
    message = pb.Route(shadows=route.shadows)
    if version:
        message.version = version
    for each, share in sorted(route.shares.items()):
        message.shares.add(version=each, share=share)
    if route.bounds:
        message.bounds.CopyFrom(_write_bounds(route.bounds))
    return message


def _write_bounds(bounds: Bounds) -> pb.Route.Bounds:
    return pb.Route.Bounds(
        error_rate=bounds.error_rate,
        latency=bounds.latency,
        disagreement=bounds.disagreement,
        min_rows=bounds.min_rows,
    )


def write_comparisons(compared: Compared, limit: int) -> pb.GetComparisonResponse:
    """With the newest `limit` disagreements."""
    return pb.GetComparisonResponse(
        task=compared.task,
        alias=compared.alias,
        version=compared.version,
        comparisons=[_write_comparison(each) for each in compared.comparisons],
        disagreements=[_write_disagreement(each) for each in compared.disagreements[:limit]],
        since=compared.since,
        keeps_inputs=compared.keeps_inputs,
    )


def _write_comparison(comparison: Comparison) -> pb.Comparison:
    return pb.Comparison(
        version=comparison.version,
        answers=comparison.answers,
        rows=comparison.rows,
        failed=comparison.failed,
        compared=comparison.compared,
        agreed=comparison.agreed,
        drift=comparison.drift,
        latency_seconds=comparison.latency_seconds,
        cost_seconds=comparison.cost_seconds,
        dropped=comparison.dropped,
    )


def _write_disagreement(disagreement: Disagreement) -> pb.Disagreement:
    time = Timestamp()
    time.FromNanoseconds(int(disagreement.time * 1e9))
    return pb.Disagreement(
        time=time,
        version=disagreement.version,
        prompt=disagreement.prompt,
        expected=disagreement.expected,
        found=disagreement.found,
        drift=disagreement.drift,
    )


def write_awaited(generation: int, servers: Sequence[Announced]) -> pb.AwaitGenerationResponse:
    return pb.AwaitGenerationResponse(
        generation=generation,
        served=all(server.generation >= generation for server in servers),
        servers=[_write_server(server) for server in servers],
    )


def _write_server(server: Announced) -> pb.ServerInfo:
    info = pb.ServerInfo(id=server.id, address=server.address, generation=server.generation)
    if server.seen:
        info.seen.FromDatetime(server.seen)
    return info
