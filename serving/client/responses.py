"""Responses to a client's results. Pure functions."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message

from protos import sidecast_pb2 as pb
from serving.client import results as results
from serving.client import routes as routes
from serving.client.errors import SidecastError, from_status


def read_predictions(response: pb.PredictResponse) -> results.Predictions:
    return results.Predictions(
        task=response.task,
        version=response.version,
        generation=response.generation,
        alias=response.alias or None,
        answers=tuple(_read_answer(answer, response.labels) for answer in response.answers),
    )


def _read_answer(answer: pb.Answer, labels: Sequence[str]) -> results.Answer:
    match answer.WhichOneof("answer"):
        case "classification":
            given = answer.classification
            return results.Classification(given.label, given.score, dict(zip(labels, given.scores, strict=True)))
        case "regression":
            return results.Regression(answer.regression.value)
        case "embedding":
            return results.Embedding(tuple(answer.embedding.values))
        case _:
            return results.Text(answer.text.text)


def read_piece(response: pb.GenerateResponse) -> results.Piece:
    return results.Piece(text=response.text, tokens=tuple(response.tokens))


def read_generated(generated: pb.Generated) -> results.GeneratedText:
    return results.GeneratedText(
        task=generated.task,
        version=generated.version,
        generation=generated.generation,
        alias=generated.alias or None,
        text=generated.text,
        finish_reason=generated.finish_reason,
        token_count=generated.token_count,
    )


def read_result(result: pb.PredictTasksResponse.Result) -> results.Predictions | SidecastError:
    if result.WhichOneof("outcome") == "error":
        return from_status(result.error)
    return read_predictions(result.prediction)


def read_task(info: pb.TaskInfo) -> results.TaskInfo:
    return results.TaskInfo(
        task=info.task,
        spec=_read_spec(info.spec) if info.HasField("spec") else None,
        aliases={alias.alias: alias.route.version for alias in info.aliases},
        serving={alias.alias: alias.serving for alias in info.aliases if alias.serving},
        versions=tuple(_read_version(version) for version in info.versions),
        routes=_read_routes({alias.alias: alias.route for alias in info.aliases}),
    )


def _read_generation(message: pb.Generation) -> dict[str, Any]:
    settings = {field.name: value for field, value in message.ListFields()}
    said = {"true": True, "false": False}
    return {name: said.get(value, value) if name == "early_stopping" else value for name, value in settings.items()}


def _read_spec(spec: pb.TaskSpec) -> results.TaskSpec:
    return results.TaskSpec(
        kind=spec.kind,
        template=spec.template,
        fields=tuple(spec.fields),
        labels=tuple(spec.labels),
        low=spec.low if spec.HasField("low") else None,
        high=spec.high if spec.HasField("high") else None,
        dimensions=spec.dimensions,
        max_rows=spec.max_rows,
        max_chars=spec.max_chars,
        max_source_tokens=spec.max_source_tokens,
        max_new_tokens=spec.max_new_tokens,
        generation=_read_generation(spec.generation),
        description=spec.description,
        target=spec.target,
        metric=spec.metric,
    )


def _read_version(version: pb.Version) -> results.VersionInfo:
    return results.VersionInfo(
        version=version.version,
        published_at=_time(version, "published_at"),
        author=version.author,
        message=version.message,
        run_id=version.run_id,
        retired=version.retired,
        resident=version.resident,
        failure=version.failure,
    )


def read_commit(commit: pb.Commit) -> results.Commit:
    return results.Commit(
        generation=commit.generation,
        time=_time(commit, "time"),
        author=commit.change.author,
        message=commit.change.message,
        actions=tuple(_read_action(action) for action in commit.actions),
    )


def _read_action(action: pb.Action) -> results.Action:
    return results.Action(
        verb=action.verb,
        task=action.task,
        version=action.version or None,
        alias=action.alias or None,
        route=read_route(action.route) if action.HasField("route") else None,
        run_id=action.run_id or None,
    )


def read_route(route: pb.Route) -> routes.Route:
    return routes.Route(
        shares={share.version: share.share for share in route.shares},
        shadows=tuple(route.shadows),
        bounds=_read_bounds(route.bounds) if route.HasField("bounds") else None,
    )


def _read_bounds(bounds: pb.Route.Bounds) -> routes.Bounds:
    given = {field.name: value for field, value in bounds.ListFields()}
    return routes.Bounds(**given)


def _read_routes(messages: Mapping[str, pb.Route]) -> dict[str, routes.Route]:
    """By alias, those that are not plain."""
    found = {alias: read_route(message) for alias, message in sorted(messages.items())}
    return {alias: route for alias, route in found.items() if not route.is_plain}


def _time(message: Message, field: str) -> datetime | None:
    return getattr(message, field).ToDatetime(UTC) if message.HasField(field) else None


def read_promoted(response: pb.SetRouteResponse) -> results.Promoted:
    return results.Promoted(
        task=response.task,
        alias=response.alias,
        version=response.route.version,
        generation=response.generation,
    )


def read_routed(response: pb.SetRouteResponse) -> routes.Routed:
    return routes.Routed(
        task=response.task,
        alias=response.alias,
        version=response.route.version,
        route=read_route(response.route),
        generation=response.generation,
    )


def read_comparisons(response: pb.GetComparisonResponse) -> routes.Comparisons:
    return routes.Comparisons(
        task=response.task,
        alias=response.alias,
        version=response.version,
        since=response.since,
        versions=tuple(_read_comparison(each) for each in response.comparisons),
        disagreements=tuple(_read_disagreement(each) for each in response.disagreements),
        keeps_inputs=response.keeps_inputs,
    )


def _read_comparison(message: pb.Comparison) -> routes.Comparison:
    return routes.Comparison(
        version=message.version,
        answers=message.answers,
        rows=message.rows,
        failed=message.failed,
        compared=message.compared,
        agreed=message.agreed,
        drift=message.drift,
        latency_seconds=message.latency_seconds,
        cost_seconds=message.cost_seconds,
        dropped=message.dropped,
    )


def _read_disagreement(message: pb.Disagreement) -> routes.Disagreement:
    return routes.Disagreement(
        time=_time(message, "time"),
        version=message.version,
        prompt=message.prompt,
        expected=message.expected,
        found=message.found,
        drift=message.drift,
    )


def read_awaited(response: pb.AwaitGenerationResponse) -> routes.Awaited:
    servers = tuple(
        routes.ServerInfo(id=each.id, address=each.address, generation=each.generation, seen=_time(each, "seen"))
        for each in response.servers
    )
    return routes.Awaited(generation=response.generation, served=response.served, servers=servers)


def read_rolled(response: pb.RollbackResponse) -> results.Rolled:
    return results.Rolled(
        task=response.task,
        alias=response.alias,
        version_from=response.version_from,
        version_to=response.version_to,
        generation=response.generation,
        canary_ended=response.canary_ended,
    )


def read_retired(response: pb.RetireResponse) -> results.Retired:
    return results.Retired(task=response.task, version=response.version, generation=response.generation)


def read_published(response: pb.PublishResponse) -> results.Published:
    return results.Published(
        task=response.task,
        version=response.version,
        generation=response.generation,
        aliases=dict(response.aliases),
        already=response.already,
    )


def read_event(response: pb.WatchEvent) -> results.Event:
    generations = response.generations
    return results.Event(
        wanted=generations.wanted,
        served=generations.served,
        changed={served.task: dict(served.serving) for served in response.changed},
        routes={served.task: found for served in response.changed if (found := _read_routes(served.routes))},
    )
