"""A client's results, made from a server's responses. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from protos import sidecast_pb2 as pb
from serving.client import results as results
from serving.client import routes as routes
from serving.client.errors import SidecastError, from_status
from serving.client.shares import WHOLE

Record = TypeVar("Record")


def read_predictions(response: pb.PredictResponse) -> results.Predictions:
    """The answers of one task, in the rows' order."""
    return results.Predictions(
        task=response.task,
        version=response.version,
        generation=response.generation,
        alias=response.alias or None,
        answers=tuple(_read_answer(answer, response.labels) for answer in response.answers),
    )


def read_ranking(response: pb.RankResponse) -> results.Ranking:
    """The passages in the order of their relevance."""
    return results.Ranking(
        task=response.task,
        version=response.version,
        generation=response.generation,
        alias=response.alias or None,
        passages=tuple(results.RankedPassage(one.index, one.score, one.truncated) for one in response.results),
    )


def joined_rankings(parts: Sequence[results.Ranking], size: int, top: int) -> results.Ranking:
    """One ranking of the rankings of a list's parts, each but the last of `size` passages; 0 for `top`: all of them."""
    passages = [replace(one, index=one.index + number * size) for number, part in enumerate(parts) for one in part]
    passages.sort(key=lambda passage: (-passage.score, passage.index))
    return replace(parts[0], passages=tuple(passages[: top or None]))


def read_outcome(result: pb.PredictTasksResponse.Result) -> results.Predictions | SidecastError:
    """The answers of one of several tasks, or the error with which it failed."""
    if result.WhichOneof("outcome") == "error":
        return from_status(result.error)
    return read_predictions(result.prediction)


def read_group(message: pb.Group) -> results.Group:
    """A group and its tasks."""
    return results.Group(group=message.group, version=message.version, tasks=_read_members(message.tasks))


def read_group_change(response: pb.SetGroupResponse | pb.RollbackGroupResponse) -> results.GroupChanged:
    """The outcome of a change of a group."""
    return results.GroupChanged(
        group=response.group.group,
        version=response.group.version,
        tasks=_read_members(response.group.tasks),
        version_from=response.version_from,
        generation=response.generation,
    )


def _read_members(tasks: Sequence[pb.TaskRef]) -> tuple[str, ...]:
    return tuple(
        f"{ref.task}:{ref.version}" if ref.HasField("version") else f"{ref.task}@{ref.alias}" if ref.alias else ref.task
        for ref in tasks
    )


def read_residents(response: pb.ListResidentsResponse) -> results.Residents:
    """The versions that one server has loaded."""
    return results.Residents(
        server=_read(routes.ServerInfo, response.server),
        device=response.device,
        residents=tuple(_read(results.Resident, resident) for resident in response.residents),
        others=tuple(_read(routes.ServerInfo, server) for server in response.others),
    )


def read_piece(response: pb.GenerateResponse) -> results.Piece:
    """A piece of a streamed text."""
    return results.Piece(text=response.text, tokens=tuple(response.tokens))


def read_generated(generated: pb.Generated) -> results.GeneratedText:
    """The whole of a streamed text."""
    return _read(results.GeneratedText, generated, alias=generated.alias or None)


def read_task(info: pb.TaskInfo) -> results.TaskInfo:
    """A task, its aliases, routes and versions."""
    return results.TaskInfo(
        task=info.task,
        spec=_read_spec(info.spec) if info.HasField("spec") else None,
        aliases={alias.alias: alias.route.version for alias in info.aliases},
        serving={alias.alias: alias.serving for alias in info.aliases if alias.serving},
        versions=tuple(_read(results.VersionInfo, version) for version in info.versions),
        routes=_read_routes({alias.alias: alias.route for alias in info.aliases}),
    )


def read_commit(commit: pb.Commit) -> results.Commit:
    """A change of the registry."""
    change = commit.change
    actions = tuple(_read_action(action) for action in commit.actions)
    return _read(results.Commit, commit, author=change.author, message=change.message, actions=actions)


def read_route(route: pb.Route) -> routes.Route:
    """An alias's route, without the alias's main version."""
    return routes.Route(
        shares={share.version: share.share / WHOLE for share in route.shares},
        shadows=tuple(route.shadows),
        bounds=_read_bounds(route.bounds) if route.HasField("bounds") else None,
    )


def read_promoted(response: pb.SetRouteResponse) -> results.Promoted:
    """The outcome of `promote`."""
    return _read(results.Promoted, response, version=response.route.version)


def read_routed(response: pb.SetRouteResponse) -> routes.Routed:
    """The outcome of `set_route`."""
    return _read(routes.Routed, response, version=response.route.version, route=read_route(response.route))


def read_rolled(response: pb.RollbackResponse) -> results.Rolled:
    """The outcome of `rollback`."""
    return _read(results.Rolled, response)


def read_retired(response: pb.RetireResponse) -> results.Retired:
    """The outcome of `retire`."""
    return _read(results.Retired, response)


def read_published(response: pb.PublishResponse) -> results.Published:
    """The outcome of `publish`."""
    return _read(results.Published, response)


def read_comparisons(response: pb.GetComparisonResponse) -> routes.Comparisons:
    """The versions of an alias's route, compared with its main version."""
    return _read(
        routes.Comparisons,
        response,
        versions=_read_comparisons(response),
        disagreements=_read_disagreements(response),
        rolled_back=_read_rolled_back(response.rolled_back) if response.HasField("rolled_back") else None,
    )


def _read_rolled_back(message: pb.RolledBack) -> routes.RolledBack:
    return _read(
        routes.RolledBack,
        message,
        version=message.route.version,
        route=read_route(message.route),
        versions=_read_comparisons(message),
        disagreements=_read_disagreements(message),
    )


def _read_comparisons(message: pb.GetComparisonResponse | pb.RolledBack) -> tuple[routes.Comparison, ...]:
    return tuple(_read(routes.Comparison, comparison) for comparison in message.comparisons)


def _read_disagreements(message: pb.GetComparisonResponse | pb.RolledBack) -> tuple[routes.Disagreement, ...]:
    return tuple(_read(routes.Disagreement, disagreement) for disagreement in message.disagreements)


def read_awaited(response: pb.AwaitGenerationResponse) -> routes.Awaited:
    """The outcome of `await_generation`."""
    servers = tuple(_read(routes.ServerInfo, server) for server in response.servers)
    return _read(routes.Awaited, response, servers=servers)


def read_event(response: pb.WatchEvent) -> results.Event:
    """One event of `watch`."""
    routes_by_task = {served.task: _read_routes(served.routes) for served in response.changed}
    return results.Event(
        wanted=response.generations.wanted,
        served=response.generations.served,
        changed={served.task: dict(served.serving) for served in response.changed},
        routes={task: routes for task, routes in routes_by_task.items() if routes},
    )


def _read_answer(answer: pb.Answer, labels: Sequence[str]) -> results.Answer:
    match answer.WhichOneof("answer"):
        case "classification":
            chosen = answer.classification
            scores = dict(zip(labels, chosen.scores, strict=True))
            return results.Classification(chosen.label, chosen.score, scores, answer.truncated)
        case "regression":
            return results.Regression(answer.regression.value, answer.truncated)
        case "embedding":
            return results.Embedding(tuple(answer.embedding.values), answer.truncated)
        case "multilabel":
            chosen = answer.multilabel
            scores = dict(zip(labels, chosen.scores, strict=True))
            return results.MultiLabel(tuple(chosen.labels), scores, answer.truncated)
        case "ranking":
            return results.Relevance(answer.ranking.relevance, answer.truncated)
        case "token_classification":
            spans = (_read(results.Span, span) for span in answer.token_classification.spans)
            return results.TokenClassification(tuple(spans), answer.truncated)
        case _:
            return results.Text(answer.text.text, answer.truncated)


def _read_spec(spec: pb.TaskSpec) -> results.TaskSpec:
    return _read(results.TaskSpec, spec, generation=_read_decoding(spec.generation))


def _read_decoding(message: pb.Generation) -> dict[str, Any]:
    settings = {field.name: value for field, value in message.ListFields()}
    if "early_stopping" in settings:
        word = settings["early_stopping"]
        settings["early_stopping"] = {"true": True, "false": False}.get(word, word)
    return settings


def _read_action(action: pb.Action) -> results.Action:
    return results.Action(
        verb=action.verb,
        task=action.task,
        version=action.version or None,
        alias=action.alias or None,
        route=read_route(action.route) if action.HasField("route") else None,
        run_id=action.run_id or None,
        group=action.group or None,
        members=tuple(action.members),
    )


def _read_bounds(bounds: pb.Route.Bounds) -> routes.Bounds:
    """A field that is not set has the default of the record, which is not that of the message."""
    return routes.Bounds(**{field.name: value for field, value in bounds.ListFields()})


def _read_routes(messages: Mapping[str, pb.Route]) -> dict[str, routes.Route]:
    """By alias, without plain routes."""
    by_alias = {alias: read_route(message) for alias, message in sorted(messages.items())}
    return {alias: route for alias, route in by_alias.items() if not route.is_plain}


def _read(kind: type[Record], message: Message, /, **values: Any) -> Record:
    """A record of that dataclass from the message's fields of the same names, except those in `values`."""
    names = [field.name for field in fields(kind) if field.name not in values]  # type: ignore[arg-type]
    return kind(**{name: _read_value(message, name) for name in names}, **values)


def _read_value(message: Message, name: str) -> Any:
    """A field as Python's own type. None: it is not set, and the message can tell."""
    if message.DESCRIPTOR.fields_by_name[name].has_presence and not message.HasField(name):
        return None
    match value := getattr(message, name):
        case Timestamp():
            return value.ToDatetime(UTC)
        case str() | bytes():
            return value
        case Mapping():
            return dict(value)
        case Sequence():
            return tuple(value)
        case _:
            return value
