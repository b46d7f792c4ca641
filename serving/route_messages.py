"""Routes, comparisons of their versions, and servers that follow, as messages of `sidecast.v1.Admin`. Pure."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from protos import sidecast_pb2 as pb
from serving.comparing import Compared, Comparison, Disagreement
from serving.errors import InvalidInput
from side_registry.route import Bounds, Route
from side_registry.servers import Announced


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
